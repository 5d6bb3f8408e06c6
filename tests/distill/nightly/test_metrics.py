"""The textfile describes the last attempt, however it ended, in Prometheus's format."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from distill.nightly.metrics import write_metrics
from distill.nightly.results import (
    CurateResult,
    DrawResult,
    GateResult,
    PromoteResult,
    ReportResult,
    StepResult,
    write_result,
)
from distill.run_dir import new_run


def read(path: Path) -> dict[str, float]:
    families = text_string_to_metric_families(path.read_text())
    return {
        ".".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_metrics_of_a_night_that_promoted(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs", {})
    run.log_attempt()
    results: tuple[StepResult, ...] = (
        CurateResult(total=700, new=480, examples=486, held_out=300, excluded={}, data_hash="abc"),
        DrawResult(tokens=9, reused=0, refused=[], prompts=290, candidates={}),
        GateResult(promote=True, n_now=8, n_new=4, checkpoint="checkpoint-1", temperature=None, why="better"),
        PromoteResult(policy_version=2, share=0.1),
        ReportResult("promoted", "N 8 → 4", Path("report.html")),
    )
    for result in results:
        write_result(run, result)
    run.log_seconds("draw", 61.5)
    write_metrics(tmp_path / "night.prom", run, 0)
    found = read(tmp_path / "night.prom")
    expected = {
        "exit_code": 0, "finished": 1, "attempts": 1, "examples": 486, "held_out_prompts": 290, "promoted": 1,
        "n_before": 8, "n_allowed": 4, "step_seconds.draw": 61.5,
    }  # fmt: skip
    assert expected == {name: found[f"ratchet_night_{name}"] for name in expected}
    assert found["ratchet_night_last_end_timestamp_seconds"] > 0


def test_the_metrics_of_a_night_that_could_not_start(tmp_path: Path) -> None:
    write_metrics(tmp_path / "night.prom", None, 75)
    found = read(tmp_path / "night.prom")
    assert (75, 0) == (found["ratchet_night_exit_code"], found["ratchet_night_finished"])
    assert 0o644 == (tmp_path / "night.prom").stat().st_mode & 0o777


def test_metrics_are_written_although_a_marker_is_damaged(tmp_path: Path) -> None:
    """The alert depends on the exit code of the attempt that found it."""
    run = new_run(tmp_path / "runs", {})
    run.mark("curate", {})
    run.marker("draw").write_bytes(b"{gar")
    write_metrics(tmp_path / "night.prom", run, 2)
    found = read(tmp_path / "night.prom")
    assert (2, 0, 0) == tuple(found[f"ratchet_night_{name}"] for name in ("exit_code", "examples", "held_out_prompts"))
