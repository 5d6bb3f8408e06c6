"""Old run directories are deleted, except those that the next night or the serving policy needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.nightly import retention
from distill.nightly.retention import drop_old_runs
from distill.run_dir import RunDir, new_run, runs
from distill.settings import NightSettings, PromotionSettings, Settings
from gateway.policy import Policy
from gateway.settings import PolicySettings

BASE = Policy.from_settings(PolicySettings())


def settings(folder: Path, keep: int) -> Settings:
    return Settings(
        night=NightSettings(runs_dir=folder / "runs", keep_runs=keep),
        promotion=PromotionSettings(adapters_dir=folder / "adapters"),
    )


def a_run(folder: Path, *, trained: bool = False, finished: bool = True) -> RunDir:
    run = new_run(folder / "runs", {})
    (run.path / "training" / "checkpoint-1").mkdir(parents=True)
    (run.path / "training" / "checkpoint-1" / "weights").write_bytes(b"heavy")
    if trained:
        run.mark("train", {})
    if finished:
        run.mark("report", {})
    return run


def left(folder: Path) -> list[int]:
    return [run.number for run in runs(folder / "runs")]


@pytest.mark.parametrize(("keep", "kept"), [(1, [5]), (4, [2, 3, 4, 5]), (5, [1, 2, 3, 4, 5]), (6, [1, 2, 3, 4, 5])])
def test_the_newest_runs_stay(tmp_path: Path, keep: int, kept: list[int]) -> None:
    for _ in range(5):
        a_run(tmp_path)
    dropped = drop_old_runs(settings(tmp_path, keep), BASE)
    assert (kept, 5 - len(kept)) == (left(tmp_path), len(dropped))
    assert len(kept) == len(list((tmp_path / "runs").iterdir())), "nothing is left of the others"


def test_the_last_run_that_trained_stays_for_the_next_night(tmp_path: Path) -> None:
    """An unfinished run that trained does not count."""
    for trained, finished in [(True, True), (True, True), (True, False), (False, True), (False, True)]:
        a_run(tmp_path, trained=trained, finished=finished)
    drop_old_runs(settings(tmp_path, 1), BASE)
    assert [2, 5] == left(tmp_path)


@pytest.mark.parametrize("place", ["stable", "canary", "holdback"])
def test_the_runs_of_the_serving_policys_adapters_stay(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [a_run(tmp_path) for _ in range(4)]

    class Published:
        def __init__(self, name: str, _folder: Path) -> None:
            assert "rft-2" == name
            self.manifest = self
            self.run = every[1].id

    monkeypatch.setattr(retention, "adapter_named", Published)
    second = {"adapter": "rft-2", "n": 2, "share": 0.1, "trial": "t", "holdback": place == "holdback"}
    changes = {"adapter": "rft-2"} if place == "stable" else {"canary": second}
    drop_old_runs(settings(tmp_path, 1), BASE.successor(reason="test", **changes))
    assert [2, 4] == left(tmp_path)


def test_an_adapter_that_no_night_published_needs_no_run(tmp_path: Path) -> None:
    for _ in range(2):
        a_run(tmp_path)
    drop_old_runs(settings(tmp_path, 1), BASE.successor(reason="by hand", adapter="mine"))
    assert [2] == left(tmp_path)


def test_a_run_whose_deleting_was_killed_is_deleted_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        a_run(tmp_path)

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.nightly.retention.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_old_runs(settings(tmp_path, 1), BASE)
    monkeypatch.undo()
    assert [1, 2] == left(tmp_path)
    drop_old_runs(settings(tmp_path, 1), BASE)
    assert [2] == left(tmp_path)
