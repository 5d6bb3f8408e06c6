"""A run directory holds markers of finished steps only, and its files survive a kill."""

import json
import resource
from pathlib import Path

import pytest

from distill.errors import DataError, RunMismatch
from distill.run_dir import RunDir, appending, find_run, new_run, runs, whole_lines
from gateway.files import write_atomically


def test_a_step_is_done_when_it_is_marked(tmp_path: Path) -> None:
    run = new_run(tmp_path, {"settings": {}})
    assert run.result("train") is None
    run.mark("train", {"steps": 3})
    assert {"steps": 3} == RunDir(run.path).result("train")
    assert not run.finished
    run.mark("report", {})
    assert run.finished


def test_attempts_and_times_of_steps_survive_the_process(tmp_path: Path) -> None:
    run = new_run(tmp_path, {})
    run.log_attempt()
    run.log_seconds("draw", 2.5)
    run.log_attempt()
    run.log_seconds("draw", 1.25)
    again = RunDir(run.path)
    assert (2, 3.75, 0.0) == (again.attempts, again.seconds("draw"), again.seconds("score"))


def test_facts_that_are_written_once_stay_those_of_the_first_attempt(tmp_path: Path) -> None:
    run = new_run(tmp_path, {})
    assert {"reused": 3, "tokens": 7} == run.write_once("draw", {"reused": 3, "tokens": 7})
    assert {"reused": 3, "tokens": 7} == RunDir(run.path).write_once("draw", {"reused": 9, "tokens": 0})
    assert {"tokens": 1} == run.write_once("score", {"tokens": 1})


@pytest.mark.parametrize(
    ("content", "problem"), [("{gar", "is not JSON"), ("[]", "is no JSON object"), ('{"tokens": 7}', "lacks reused")]
)
def test_damaged_facts_of_an_earlier_attempt_are_named_with_what_to_do(
    tmp_path: Path, content: str, problem: str
) -> None:
    run = new_run(tmp_path, {})
    run.write_once("draw", {"reused": 3, "tokens": 7})
    path = run.path / "draws" / "begun-draw.json"
    path.write_text(content)
    with pytest.raises(DataError, match=problem) as raised:
        run.write_once("draw", {"reused": 9, "tokens": 0})
    assert f"{path} {problem}: remove it, and it is written again" == str(raised.value)
    path.unlink()
    assert {"reused": 9, "tokens": 0} == run.write_once("draw", {"reused": 9, "tokens": 0})


def test_runs_are_found_by_id_by_path_and_in_order(tmp_path: Path) -> None:
    first, second = new_run(tmp_path, {"a": 1}), new_run(tmp_path, {"a": 2})
    (tmp_path / "half").mkdir()
    assert [first.id, second.id] == [run.id for run in runs(tmp_path)]
    assert {"number": 1, "a": 1} == find_run(tmp_path, first.id).manifest
    assert {"number": 2, "a": 2} == find_run(tmp_path, str(second.path)).manifest
    assert [] == runs(tmp_path / "absent")
    with pytest.raises(RunMismatch, match="no run half"):
        find_run(tmp_path, "half")


def test_an_unfinished_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with appending(path) as sink:
        sink.write(b"one\nhal")
    assert [b"one"] == whole_lines(path)
    with appending(path) as sink:
        sink.write(b"two\n")
    assert b"one\ntwo\n" == path.read_bytes()


def test_a_full_disk_is_a_data_error(tmp_path: Path) -> None:
    """A limit on file size simulates it: the kernel refuses the write in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match=r"lines cannot be written"), appending(tmp_path / "lines") as sink:
            sink.write(b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_missing_and_malformed_files_are_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        _ = run.manifest
    for content in ("{", json.dumps([])):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=r"manifest\.json is no"):
            _ = run.manifest
    with pytest.raises(DataError, match="cannot be read"):
        whole_lines(tmp_path / "absent")


def test_a_run_of_a_clock_that_was_ahead_does_not_stay_the_last_run(tmp_path: Path) -> None:
    """Runs are ordered by when they began; those without a number come first, by name."""
    ahead = RunDir(tmp_path / "2099-01-01T00-00-00")
    for name in (ahead.id, "2025-01-01T00-00-00"):
        write_atomically(tmp_path / name / "manifest.json", b"{}")
    write_atomically(tmp_path / "2098-01-01T00-00-00" / "manifest.json", b"garbled")
    first, second = new_run(tmp_path, {}), new_run(tmp_path, {})
    third = first.path.rename(tmp_path / "2097-01-01T00-00-00")
    expected = ["2025-01-01T00-00-00", "2098-01-01T00-00-00", ahead.id, third.name, second.id]
    assert expected == [run.id for run in runs(tmp_path)]
    assert [0, 0, 0, 1, 2] == [run.number for run in runs(tmp_path)]
    assert 3 == new_run(tmp_path, {}).number
