"""Tests of the markers: results are read back as they were written, also those of earlier releases."""

import json
from pathlib import Path
from typing import Any

import pytest

from distill.errors import DataError
from distill.nightly.results import (
    STEPS,
    CanaryResult,
    CollectResult,
    CurateResult,
    DrawResult,
    GateResult,
    LoadResult,
    NightResults,
    PromoteResult,
    PublishResult,
    ReportResult,
    RewardsFile,
    ScoreResult,
    StepResult,
    TrainResult,
    read_result,
    write_result,
)
from distill.run_dir import RunDir

RESULTS: tuple[StepResult, ...] = (
    CollectResult(archived=60, duplicates=2, unreadable=1, lost=3),
    CurateResult(60, 30, 40, 20, {"too long": 1}, "abc", {"stub/reward": 40}, ["news"]),
    TrainResult((Path("a/checkpoint-4"),), 4, 30, 10, 900, 1.5, None, (2.0, 1.0), (0.5, 0.25), "tiny"),
    DrawResult(100, 5, ["a prompt"], 20, {"checkpoint-4": "rft-1"}, "probes", ["news"]),
    ScoreResult(RewardsFile("m", Path("m.jsonl"), 7), RewardsFile("j", Path("j.jsonl"), 9), 16, ["news"]),
    GateResult(True, 8, 4, "checkpoint-4", 0.7, "better", 12),
    PublishResult("rft-1", Path("adapters/rft-1")),
    LoadResult(2),
    CanaryResult("replica 0 answers"),
    PromoteResult(5, 0.1),
    ReportResult("promoted", "N 8 → 4", Path("report.html")),
)

WITHOUT_NEWER_FIELDS = {
    "collect": ["lost"],
    "curate": ["reward_models", "news"],
    "draw": ["behaviour", "news"],
    "score": ["news"],
    "gate": ["more_prompts"],
}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.step)
def test_a_result_is_read_back_from_its_marker(run: RunDir, result: StepResult) -> None:
    assert read_result(run, type(result)) is None
    write_result(run, result)
    assert result == read_result(run, type(result))


def test_markers_of_earlier_releases_may_lack_newer_fields_and_hold_older_ones(run: RunDir) -> None:
    for result in RESULTS:
        write_result(run, result)
        marker = json.loads(run.marker(result.step).read_bytes()) | {"left_out": {}}
        for name in WITHOUT_NEWER_FIELDS.get(result.step, []):
            del marker[name]
        run.mark(result.step, marker)
        assert type(result) is type(read_result(run, type(result)))
    collected, drawn = read_result(run, CollectResult), read_result(run, DrawResult)
    assert collected is not None
    assert drawn is not None
    assert (0, "", []) == (collected.lost, drawn.behaviour, drawn.news)


@pytest.mark.parametrize(
    ("marker", "where"),
    [({}, "checkpoints: Field required"), ({"checkpoints": 3}, "checkpoints: Input should be"), ({"steps": "x"}, "")],
)
def test_a_damaged_marker_is_named_with_what_to_do(run: RunDir, marker: dict[str, Any], where: str) -> None:
    run.mark("train", marker)
    with pytest.raises(DataError, match="is not what the step left") as raised:
        read_result(run, TrainResult)
    assert str(run.marker("train")) in str(raised.value)
    assert where in str(raised.value)
    assert "remove it, and the step is run again" in str(raised.value)


def test_the_steps_are_those_of_the_architecture() -> None:
    expected = "collect curate train draw score gate publish load canary promote report"
    assert tuple(expected.split()) == STEPS


def test_the_results_of_a_night_are_listed_in_order_as_far_as_it_came() -> None:
    collected, curated, trained, drawn, scored, *_ = RESULTS
    assert isinstance(collected, CollectResult)
    assert isinstance(curated, CurateResult)
    short = NightResults(collected, curated)
    assert (["collect", "curate"], ["news"]) == ([each.step for each in short.steps()], short.news)
    assert isinstance(trained, TrainResult)
    assert isinstance(drawn, DrawResult)
    assert isinstance(scored, ScoreResult)
    longer = NightResults(collected, curated, trained, drawn, scored)
    assert (list(STEPS[:5]), ["news"] * 3) == ([each.step for each in longer.steps()], longer.news)
