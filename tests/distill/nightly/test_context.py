"""Steps are run once, in whatever attempt; what an attempt took is noted however it ends."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from distill.nightly.context import STEPS, Night, Result, UntilReached
from distill.run_dir import new_run
from distill.settings import Settings
from gateway.policy import Policy
from gateway.settings import Settings as GatewaySettings


@pytest.fixture
def night(tmp_path: Path) -> Night:
    serving = Policy(version=3, n=4, n_max=8, adapter="rft-1")
    run = new_run(tmp_path, {"serving": serving.model_dump(mode="json")})
    return Night(Settings(), GatewaySettings(), run, Console(quiet=True))


def again(night: Night) -> Night:
    """The same night in another attempt."""
    return Night(night.settings, night.gateway, night.run, night.console)


def test_a_step_that_is_through_is_not_run_again(night: Night) -> None:
    calls: list[str] = []

    def action(_: Night) -> Result:
        calls.append("ran")
        return {"urls": 3}

    assert {"urls": 3} == night.step("load", action)
    later = again(night)
    assert {"urls": 3} == later.step("load", action)
    assert (["ran"], {"load": {"urls": 3}}) == (calls, later.results)


def test_a_step_that_fails_is_run_again_and_its_time_counts(night: Night) -> None:
    def fails(_: Night) -> Result:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        night.step("train", fails)
    spent = night.run.seconds("train")
    assert spent >= 0
    assert {} == again(night).step("train", lambda _: {})
    assert night.run.seconds("train") >= spent


def test_the_last_step_asked_for_ends_the_attempt_each_time(night: Night) -> None:
    night.until = "load"
    assert {} == night.step("collect", lambda _: {})
    for _ in range(2):
        with pytest.raises(UntilReached):
            night.step("load", lambda _: {"urls": 1})


def test_the_policy_it_is_measured_against_is_the_one_of_its_beginning(night: Night) -> None:
    assert ("rft-1", 4, 3) == (night.serving.adapter, night.serving.n, night.serving.version)


def test_a_bar_learns_its_total_on_the_way(night: Night) -> None:
    """The first step tells how many there are; those after it need not say so again."""
    drawn = StringIO()
    loud = Night(night.settings, night.gateway, night.run, Console(file=drawn, width=100))
    with loud.bar("training", None) as advance:
        advance(1, 10)
        advance(9)
    assert "10/10" in drawn.getvalue()


def test_the_steps_are_those_of_the_architecture() -> None:
    expected = "collect curate train draw score gate publish load canary promote report"
    assert tuple(expected.split()) == STEPS
