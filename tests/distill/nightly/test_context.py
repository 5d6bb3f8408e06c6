"""Tests of a night's context: each step runs once."""

import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from distill.nightly.context import Night, UntilReached
from distill.nightly.manifest import new_manifest
from distill.nightly.results import CollectResult, LoadResult, TrainResult
from distill.run_dir import new_run
from distill.settings import Settings
from gateway.policy import Policy
from gateway.settings import Settings as GatewaySettings


@pytest.fixture
def night(tmp_path: Path) -> Night:
    serving = Policy(version=3, n=4, n_max=8, adapter="rft-1")
    run = new_run(tmp_path, new_manifest(Settings(), GatewaySettings(), serving))
    return Night(Settings(), GatewaySettings(), run, Console(quiet=True))


def resumed(night: Night) -> Night:
    """Return the same night in another attempt."""
    return Night(night.settings, night.gateway, night.run, night.console)


def trained() -> TrainResult:
    return TrainResult((Path("checkpoint-1"),), 1, 2, 0, 30, 0.5, None, (1.5,), (0.25,), "tiny")


def test_a_finished_step_is_not_run_again_and_its_result_is_read_back(night: Night) -> None:
    calls: list[str] = []

    def action(_: Night) -> TrainResult:
        calls.append("ran")
        return trained()

    assert trained() == night.step(TrainResult, action)
    assert trained() == resumed(night).step(TrainResult, action)
    assert ["ran"] == calls


def test_a_step_gets_the_earlier_results_that_it_uses(night: Night) -> None:
    def load(_: Night, before: TrainResult) -> LoadResult:
        return LoadResult(before.examples)

    assert LoadResult(2) == night.step(LoadResult, load, trained())


def test_a_step_that_fails_is_run_again_and_its_time_counts(night: Night) -> None:
    def fails(_: Night) -> TrainResult:
        time.sleep(0.02)
        raise OSError("no")

    def succeeds(_: Night) -> TrainResult:
        time.sleep(0.02)
        return trained()

    with pytest.raises(OSError, match="no"):
        night.step(TrainResult, fails)
    assert night.run.seconds("train") >= 0.02
    assert trained() == resumed(night).step(TrainResult, succeeds)
    assert night.run.seconds("train") >= 0.04


def test_the_step_of_until_ends_every_attempt(night: Night) -> None:
    night.until = "load"
    night.step(CollectResult, lambda _: CollectResult(1, 0, 0))
    for _ in range(2):
        with pytest.raises(UntilReached):
            night.step(LoadResult, lambda _: LoadResult(1))


def test_a_night_measures_against_the_policy_that_served_when_it_began(night: Night) -> None:
    assert ("rft-1", 4, 3) == (night.serving.adapter, night.serving.n, night.serving.version)


def test_a_bar_can_get_its_total_later(night: Night) -> None:
    """Training knows the number of its steps only after the first one."""
    output = StringIO()
    loud = Night(night.settings, night.gateway, night.run, Console(file=output, width=100))
    with loud.bar("training", None) as advance:
        advance(1, 10)
        advance(9)
    assert "10/10" in output.getvalue()
