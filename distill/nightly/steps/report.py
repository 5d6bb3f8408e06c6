"""The last step: what the night did, as facts and as a page."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from distill.errors import NightError
from distill.nightly.context import STEPS, Night, Result
from distill.nightly.steps.data import why_not_trained
from distill.nightly.steps.evidence import Evidence
from distill.nightly.steps.measure import sampled_still
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


def report(night: Night) -> Result:
    """Write report.json and report.html into the run directory."""
    facts = gather(night)
    page = write_report(facts, night.run.path)
    return {"outcome": facts.outcome, "headline": facts.headline, "page": str(page)}


def gather(night: Night) -> NightFacts:
    """Everything that is known of the night, as far as it came."""
    results, manifest = night.results, night.run.manifest
    outcome, headline = _outcome(night)
    every = sampled_still(night) if "gate" in results else []
    evidence = Evidence(night, every) if every else None
    return NightFacts(
        run=night.run.id,
        outcome=outcome,
        headline=headline,
        notes=[words for step in STEPS for words in results.get(step, {}).get("news", [])],
        started=manifest["began"],
        finished=datetime.now(UTC),
        resumed=max(night.run.attempts - 1, 0),
        versions=manifest["versions"],
        commit=manifest["commit"],
        data_hash=results.get("curate", {}).get("data_hash"),
        settings=manifest["settings"],
        serving=_version(night.serving),
        collected=_collected(results),
        trained=_trained(results.get("train"), night.settings.training.objective),
        measured=evidence.measured() if evidence is not None else None,
        decision=evidence.decision() if evidence is not None else None,
        promoted=_promoted(results),
        samples=evidence.samples() if evidence is not None else [],
        history=[_version(policy) for policy in asyncio.run(_history(night))],
        costs=[_cost(night, step) for step in STEPS if step in results],
    )


def _outcome(night: Night) -> tuple[Any, str]:
    results = night.results
    if "promote" in results:
        decided = results["gate"]
        return "promoted", f"N {decided['n_now']} → {decided['n_new']}: {decided['why']}"
    if "gate" in results:
        return "kept", results["gate"]["why"]
    if "curate" in results and (reason := why_not_trained(night)) is not None:
        return "too few examples", f"N stays {night.serving.n}: {reason}"
    return "unfinished", f"unfinished: {', '.join(results) or 'no step'} done"


def _collected(results: dict[str, Result]) -> Collected | None:
    if "curate" not in results:
        return None
    collected, curated = results["collect"], results["curate"]
    return Collected(
        archived=collected["archived"],
        unreadable=collected["unreadable"],
        lost=collected.get("lost", 0),
        total=curated["total"],
        examples=curated["examples"],
        held_out=curated["held_out"],
        excluded=curated["excluded"],
        reward_models=curated.get("reward_models", {}),
    )


def _trained(result: Result | None, objective: str) -> Trained | None:
    if result is None:
        return None
    points = zip(result["losses"], result["gradient_norms"], strict=True)
    return Trained(
        objective=objective,
        base_model=result["base"],
        examples=result["examples"],
        replayed=result["replayed"],
        tokens=result["tokens"],
        steps=result["steps"],
        seconds=result["seconds"],
        tokens_per_s=result["tokens"] / max(result["seconds"], 1e-9),
        peak_memory_bytes=result["peak_memory_bytes"],
        checkpoints=[path.rsplit("/", 1)[-1] for path in result["checkpoints"]],
        loss=[LossPoint(step=step, loss=loss, gradient_norm=norm) for step, (loss, norm) in enumerate(points, start=1)],
    )


def _promoted(results: dict[str, Result]) -> Promoted | None:
    if "promote" not in results:
        return None
    return Promoted(
        adapter=results["publish"]["adapter"],
        canary=results["canary"]["found"],
        policy_version=results["promote"]["policy_version"],
        share=results["promote"]["share"],
    )


def _cost(night: Night, step: str) -> Cost:
    result = night.results[step]
    return Cost(
        step=step,
        seconds=night.run.seconds(step),
        drawn_tokens=result["tokens"] if step == "draw" else 0,
        scored_tokens=result["tokens"] if step == "score" else 0,
        trained_tokens=result["tokens"] if step == "train" else 0,
        reused_draws=result.get("reused", 0) if step == "draw" else 0,
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
