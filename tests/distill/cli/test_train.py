"""``python -m distill train`` as an operator runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distill.__main__ import app
from distill.dataset.files import write_lines
from distill.settings import TrainingSettings
from distill.training.base import load_base
from distill.training.train import train
from tests.distill.training.tiny import tiny_examples


@pytest.fixture
def environment(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny base and a short run."""
    values = {"MODEL": tiny, "RANK": 4, "ALPHA": 8, "BATCH_EXAMPLES": 4, "EPOCHS": 1, "LEARNING_RATE": 0.01}
    for name, value in values.items():
        monkeypatch.setenv(f"DISTILL_TRAINING__{name}", str(value))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.usefixtures("environment")
def test_the_command_trains_and_prints_a_summary(tmp_path: Path) -> None:
    """On this night's examples and an earlier night's, into a folder of checkpoints."""
    write_lines(tmp_path / "tonight.jsonl", tiny_examples(6))
    write_lines(tmp_path / "before.jsonl", tiny_examples(2, start=50))
    done = run(tmp_path / "tonight.jsonl", "--out", tmp_path / "out", "--replay", tmp_path / "before.jsonl")
    assert 0 == done.exit_code
    assert "8 (2 of earlier nights)" in done.stderr
    assert (tmp_path / "out" / "checkpoint-2" / "adapter_model.safetensors").is_file()


@pytest.mark.usefixtures("environment")
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file, a folder that cannot be written, a bad setting."""
    missing = run(tmp_path / "none.jsonl", "--out", tmp_path / "out")
    assert (2, False) == (missing.exit_code, "Traceback" in missing.stderr)
    write_lines(tmp_path / "tonight.jsonl", tiny_examples(1))
    (tmp_path / "file").write_text("")
    blocked = run(tmp_path / "tonight.jsonl", "--out", tmp_path / "file" / "out")
    assert (2, True) == (blocked.exit_code, "Not a directory" in blocked.stderr)
    monkeypatch.setenv("DISTILL_TRAINING__RANK", "0")
    assert 2 == run(tmp_path / "tonight.jsonl", "--out", tmp_path / "out").exit_code


def test_the_loss_of_smollm2_falls(tmp_path: Path) -> None:
    """The real base, its real template, four steps on one sentence."""
    (example,) = tiny_examples(1)
    options = TrainingSettings(batch_examples=1, epochs=4, checkpoints=1, learning_rate=2e-3)
    options = options.model_copy(update={"warm_up": 0})
    trained = train([example], [], options, tmp_path)
    assert trained.losses[-1] < 0.7 * trained.losses[0]
    assert "SmolLM2-135M-Instruct" == trained.base == load_base("").name
