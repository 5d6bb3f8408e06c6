"""A night, from top to bottom. Each step is run once, however often the night is begun."""

from __future__ import annotations

from distill.nightly.context import Night, UntilReached
from distill.nightly.steps.data import collect, collect_again, curate, train, why_not_trained
from distill.nightly.steps.gate import gate
from distill.nightly.steps.measure import draw, run_again_what_lost_files, score
from distill.nightly.steps.report import report
from distill.nightly.steps.rollout import canary, load, promote, publish


def run(night: Night) -> None:
    """Run what is left of a night, up to the step it was asked to stop at."""
    try:
        _steps(night)
    except UntilReached:
        night.say(f"as far as asked: {night.until}")


def _steps(night: Night) -> None:
    collect_again(night)
    night.step("collect", collect)
    night.step("curate", curate)
    if why_not_trained(night) is None:
        night.step("train", train)
        run_again_what_lost_files(night)
        night.step("draw", draw)
        night.step("score", score)
        decided = night.step("gate", gate)
        if decided["promote"]:
            night.step("publish", publish)
            night.step("load", load)
            night.step("canary", canary)
            night.step("promote", promote)
    night.step("report", report)
