"""Checkpoints: seal, keep and discard."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.training.checkpoints import SEAL_FILE, discard, kept_steps, sealed


@pytest.mark.parametrize(
    ("steps", "count", "kept"), [(6, 3, [2, 4, 6]), (10, 3, [4, 7, 10]), (2, 5, [1, 2]), (7, 1, [7])]
)
def test_checkpoints_are_spread_evenly_and_the_last_step_is_one(steps: int, count: int, kept: list[int]) -> None:
    """Fewer steps than checkpoints: one a step."""
    assert kept == kept_steps(steps, count)


def test_only_sealed_folders_count_and_others_are_discarded(tmp_path: Path) -> None:
    """A folder without its seal was killed in mid-save; other names are not ours to remove."""
    for name in ("checkpoint-2", "checkpoint-4", "checkpoint-10", "checkpoint-best", "tensorboard"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name / SEAL_FILE).write_text("{}")
    assert {2: tmp_path / "checkpoint-2", 10: tmp_path / "checkpoint-10"} == sealed(tmp_path)
    discard(tmp_path, {4, 10})
    assert ["checkpoint-10", "checkpoint-best", "tensorboard"] == sorted(path.name for path in tmp_path.iterdir())
