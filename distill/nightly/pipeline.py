"""A night, step by step. Each step runs once, however often the night is resumed."""

from __future__ import annotations

from distill.nightly.context import Night, UntilReached
from distill.nightly.results import (
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
    ScoreResult,
    TrainResult,
)
from distill.nightly.steps.data import add_collected, collect, curate, reason_not_to_train, train
from distill.nightly.steps.gate import gate
from distill.nightly.steps.measure import draw, score, unmark_steps_that_lost_files
from distill.nightly.steps.report import report
from distill.nightly.steps.rollout import check_weights, load, promote, publish


def run(night: Night) -> ReportResult | None:
    """Run the remaining steps of a night; return its report, or None if it was asked to stop before."""
    try:
        return _run_steps(night)
    except UntilReached:
        night.print(f"stopped after {night.until}, as --until asks")
        return None


def _run_steps(night: Night) -> ReportResult:
    add_collected(night)
    collected = night.step(CollectResult, collect)
    curated = night.step(CurateResult, curate)
    results = NightResults(collected, curated)
    if reason_not_to_train(night, curated) is None:
        results.train = trained = night.step(TrainResult, train)
        unmark_steps_that_lost_files(night)
        results.draw = drawn = night.step(DrawResult, draw, trained)
        results.score = scored = night.step(ScoreResult, score, drawn)
        results.gate = decided = night.step(GateResult, gate, drawn, scored)
        if decided.promote:
            results.publish = published = night.step(PublishResult, publish, trained, drawn, decided)
            results.load = night.step(LoadResult, load, published)
            results.canary = night.step(CanaryResult, check_weights, published)
            results.promote = night.step(PromoteResult, promote, decided, published)
    return night.step(ReportResult, report, results)
