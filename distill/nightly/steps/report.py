"""The report step: the facts of the night, and the page that shows them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import numpy as np

from distill.errors import NightError
from distill.evaluation.curve import Floats, curves
from distill.evaluation.guardrails import Comparison, Guardrail, check_judge
from distill.evaluation.quality import scale_at
from distill.evaluation.resample import Bootstrap, conversation_index
from distill.evaluation.verdict import Verdict
from distill.nightly.context import Night
from distill.nightly.results import (
    DrawResult,
    NightResults,
    ReportResult,
    ScoreResult,
    StepResult,
    TrainResult,
)
from distill.nightly.scored_samples import PolicySamples, read_remaining_samples
from distill.nightly.steps.data import reason_not_to_train
from distill.nightly.steps.gate import bounds, read_verdict
from distill.report.facts import (
    Answer,
    Bars,
    Collected,
    Cost,
    LossPoint,
    Measured,
    NightFacts,
    PolicyVersion,
    Promoted,
    SampleSummary,
    SideBySide,
    Trained,
)
from distill.report.page import write_report
from gateway.errors import PolicyError
from gateway.policy import Policy, PolicyStore

_BINS = 40
_SHOWN_PROMPTS = 12


def report(night: Night, results: NightResults) -> ReportResult:
    """Write report.json and report.html into the run directory."""
    facts = gather(night, results)
    page = write_report(facts, night.run.path)
    return ReportResult(facts.outcome, facts.headline, page)


def gather(night: Night, results: NightResults) -> NightFacts:
    """Return the facts of the night."""
    manifest = night.manifest
    outcome, headline = _outcome(night, results)
    verdict = None if results.gate is None else read_verdict(night.run)
    samples = None if verdict is None else _Samples.read(night, results, verdict)
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
        collected=Collected.model_validate(vars(results.collect) | vars(results.curate)),
        trained=_trained(results.train, night.settings.training.objective),
        measured=samples.measured() if samples is not None else None,
        verdict=verdict,
        promoted=_promoted(results),
        samples=samples.side_by_side() if samples is not None else [],
        history=[_version(policy) for policy in asyncio.run(_history(night))],
        costs=[_cost(night, result) for result in results.steps()],
    )


def _outcome(night: Night, results: NightResults) -> tuple[Literal["promoted", "kept", "too few examples"], str]:
    decided = results.gate
    if decided is None:
        return "too few examples", f"N stays {night.serving.n}: {reason_not_to_train(night, results.curate)}"
    return "kept" if results.promote is None else "promoted", decided.why


def _trained(result: TrainResult | None, objective: str) -> Trained | None:
    if result is None:
        return None
    points = zip(result.losses, result.gradient_norms, strict=True)
    loss = [LossPoint(step=step, loss=loss, gradient_norm=norm) for step, (loss, norm) in enumerate(points, start=1)]
    named = {
        "objective": objective,
        "base_model": result.base,
        "tokens_per_s": result.tokens / max(result.seconds, 1e-9),
        "checkpoints": [path.name for path in result.checkpoints],
        "loss": loss,
    }
    return Trained.model_validate(vars(result) | named)


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
    """Return every published policy, oldest first, after the settings' own policy where that served before."""
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


class _Samples:
    """The samples that the gate compared, described for the report.

    Args:
        night: The night.
        scored: The result of its score step.
        every: Its samples with their rewards.
        verdict: The gate's verdict.
    """

    def __init__(self, night: Night, scored: ScoreResult, every: list[PolicySamples], verdict: Verdict) -> None:
        self._night, self._scored, self._every, self._verdict = night, scored, every, verdict
        best = verdict.best
        self._served = self._find("old", None, verdict.serving_temperature)
        self._new = self._find("new", best.checkpoint, best.temperature)
        self._scale = scale_at(self._served.rewards_PM)

    @classmethod
    def read(cls, night: Night, results: NightResults, verdict: Verdict) -> _Samples | None:
        """Read the samples; None where too few remain, because persons were forgotten since the gate decided."""
        if results.draw is None or results.score is None:
            return None
        every = read_remaining_samples(night, results.draw, results.score)
        return cls(night, results.score, every, verdict) if every else None

    def _find(self, side: str, name: str | None, temperature: float) -> PolicySamples:
        return next(
            each
            for each in self._every
            if (each.policy.side, each.temperature) == (side, temperature) and name in (None, each.policy.name)
        )

    def measured(self) -> Measured:
        judge = self._scored.judge
        return Measured(
            draws=len(self._served.samples[0]),
            max_tokens=self._served.policy.plan.max_tokens,
            reward_model=self._scored.select.model,
            judge_model=None if judge is None else judge.model,
            sample_sets=[self._describe(each) for each in self._every],
            guardrails=self._guardrails(),
            rewards=self._bars([self._scale(each.rewards_PM) for each in (self._served, self._new)]),
            lengths=self._bars([each.texts.tokens_PM for each in (self._served, self._new)]),
        )

    def side_by_side(self) -> list[SideBySide]:
        """Return a dozen prompts, evenly over all, with the answers that both policies would serve."""
        count = len(self._new.samples)
        places = sorted({round(place) for place in np.linspace(0, count - 1, min(_SHOWN_PROMPTS, count))})
        n_new = self._verdict.n_new if self._verdict.promote else self._verdict.fewer
        return [
            SideBySide(
                messages=[dict(message) for message in self._new.samples[place][0].prompt.messages],
                old=self._pick(self._served, place, self._verdict.n_now),
                new=self._pick(self._new, place, n_new),
            )
            for place in places
        ]

    def _pick(self, side: PolicySamples, place: int, n: int) -> Answer:
        """Return the answer that the gateway would have given from the first n samples."""
        rewards = self._scale(side.rewards_PM)[place, :n]
        winner = side.samples[place][int(rewards.argmax())]
        return Answer(
            name=side.policy.name,
            n=n,
            temperature=side.temperature,
            text=winner.text,
            reward=float(rewards.max()),
            tokens=winner.completion_tokens,
        )

    def _describe(self, side: PolicySamples) -> SampleSummary:
        ns = range(1, side.rewards_PM.shape[1] + 1)
        return SampleSummary(
            side=side.policy.side,
            name=side.policy.name,
            temperature=side.temperature,
            sd=float(np.sqrt(self._scale(side.rewards_PM).var(axis=1, ddof=1).mean())),
            mean_tokens=float(side.texts.tokens_PM.mean()),
            truncated=float(side.texts.truncated_PM.mean()),
            distinct=float(side.texts.distinct_P.mean()),
            pick_tokens=curves(side.rewards_PM, side.texts.tokens_PM, ns).mean(axis=0).tolist(),
        )

    def _guardrails(self) -> list[Guardrail]:
        """Return the guardrails that the gate checked; else those of the smallest step down, for information."""
        verdict = self._verdict
        checked = [test for test in verdict.best.tests if test.guardrails]
        if checked:
            chosen = [test for test in checked if verdict.promote and test.n == verdict.n_new]
            return list((chosen or checked)[-1].guardrails)
        index_P = conversation_index(self._served.conversations)
        sides = (verdict.n_now, self._new.scored, verdict.fewer, index_P, Bootstrap(int(index_P.max()) + 1))
        judge = check_judge([each.scored for each in self._every if each.policy.side == "old"], *sides)
        found = Comparison(self._served.scored, *sides).check(bounds(self._night.settings.evaluation))
        return [*found, *([judge] if judge is not None else [])]

    def _bars(self, values: Sequence[Floats]) -> list[Bars]:
        """Return the histograms of the serving policy and of the best checkpoint, with the same bins."""
        low, high = min(float(each.min()) for each in values), max(float(each.max()) for each in values)
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        return [
            Bars(
                side=side.policy.side,
                name=side.policy.name,
                temperature=side.temperature,
                edges=edges.tolist(),
                counts=np.histogram(each, edges)[0].tolist(),
            )
            for side, each in zip((self._served, self._new), values, strict=True)
        ]
