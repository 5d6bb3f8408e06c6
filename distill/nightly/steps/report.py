"""The report step: the facts of the night, and the page that shows them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Literal

from distill.errors import NightError
from distill.nightly.context import Night
from distill.nightly.results import (
    DrawResult,
    NightResults,
    ReportResult,
    ScoreResult,
    StepResult,
    TrainResult,
)
from distill.nightly.scored_samples import read_remaining_samples
from distill.nightly.steps.data import reason_not_to_train
from distill.nightly.steps.evidence import Evidence
from distill.report.facts import (
    Collected,
    Cost,
    LossPoint,
    NightFacts,
    PolicyVersion,
    Promoted,
    Trained,
)
from distill.report.page import write_report
from gateway.errors import PolicyError
from gateway.policy import Policy, PolicyStore


def report(night: Night, results: NightResults) -> ReportResult:
    """Write report.json and report.html into the run directory."""
    facts = gather(night, results)
    page = write_report(facts, night.run.path)
    return ReportResult(facts.outcome, facts.headline, page)


def gather(night: Night, results: NightResults) -> NightFacts:
    """Return the facts of the night."""
    manifest = night.manifest
    outcome, headline = _outcome(night, results)
    evidence = _evidence(night, results)
    return NightFacts(
        run=night.run.id,
        outcome=outcome,
        headline=headline,
        notes=results.news,
        started=manifest.began,
        finished=datetime.now(UTC),
        resumed=max(night.run.attempts - 1, 0),
        versions=manifest.versions,
        commit=manifest.commit,
        data_hash=results.curate.data_hash,
        settings=manifest.settings,
        serving=_version(night.serving),
        collected=_collected(results),
        trained=_trained(results.train, night.settings.training.objective),
        measured=evidence.measured() if evidence is not None else None,
        decision=evidence.decision() if evidence is not None else None,
        promoted=_promoted(results),
        samples=evidence.samples() if evidence is not None else [],
        history=[_version(policy) for policy in asyncio.run(_history(night))],
        costs=[_cost(night, result) for result in results.steps()],
    )


def _evidence(night: Night, results: NightResults) -> Evidence | None:
    if results.draw is None or results.score is None or results.gate is None:
        return None
    samples = read_remaining_samples(night, results.draw, results.score)
    return Evidence(night, results.score, samples) if samples else None


def _outcome(night: Night, results: NightResults) -> tuple[Literal["promoted", "kept", "too few examples"], str]:
    decided = results.gate
    if decided is None:
        return "too few examples", f"N stays {night.serving.n}: {reason_not_to_train(night, results.curate)}"
    if results.promote is None:
        return "kept", decided.why
    return "promoted", f"N {decided.n_now} → {decided.n_new}: {decided.why}"


def _collected(results: NightResults) -> Collected:
    collected, curated = results.collect, results.curate
    return Collected(
        archived=collected.archived,
        unreadable=collected.unreadable,
        lost=collected.lost,
        total=curated.total,
        examples=curated.examples,
        held_out=curated.held_out,
        excluded=curated.excluded,
        reward_models=curated.reward_models,
    )


def _trained(result: TrainResult | None, objective: str) -> Trained | None:
    if result is None:
        return None
    points = zip(result.losses, result.gradient_norms, strict=True)
    return Trained(
        objective=objective,
        base_model=result.base,
        examples=result.examples,
        replayed=result.replayed,
        tokens=result.tokens,
        steps=result.steps,
        seconds=result.seconds,
        tokens_per_s=result.tokens / max(result.seconds, 1e-9),
        peak_memory_bytes=result.peak_memory_bytes,
        checkpoints=[path.name for path in result.checkpoints],
        loss=[LossPoint(step=step, loss=loss, gradient_norm=norm) for step, (loss, norm) in enumerate(points, start=1)],
    )


def _promoted(results: NightResults) -> Promoted | None:
    if results.publish is None or results.canary is None or results.promote is None:
        return None
    return Promoted(
        adapter=results.publish.adapter,
        canary=results.canary.found,
        policy_version=results.promote.policy_version,
        share=results.promote.share,
    )


def _cost(night: Night, result: StepResult) -> Cost:
    return Cost(
        step=result.step,
        seconds=night.run.seconds(result.step),
        drawn_tokens=result.tokens if isinstance(result, DrawResult) else 0,
        scored_tokens=result.tokens if isinstance(result, ScoreResult) else 0,
        trained_tokens=result.tokens if isinstance(result, TrainResult) else 0,
        reused_draws=result.reused if isinstance(result, DrawResult) else 0,
    )


async def _history(night: Night) -> list[Policy]:
    """Every published policy, oldest first, after the settings' own where that served before."""
    try:
        async with PolicyStore.opened(night.gateway) as store:
            published = await store.history(limit=1000)
    except PolicyError as error:
        raise NightError(error.message) from error
    known = {policy.version for policy in published}
    before = [] if night.serving.version in known else [night.serving]
    return sorted([*before, *published], key=lambda policy: policy.version)


def _version(policy: Policy) -> PolicyVersion:
    return PolicyVersion(
        version=policy.version,
        created=policy.created,
        adapter=policy.adapter,
        n=policy.n,
        temperature=policy.default_temperature,
        reason=policy.reason,
    )
