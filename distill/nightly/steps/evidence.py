"""What was measured and decided, as the report's facts: curves, distributions, trials, guards, answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.evaluation import equivalent
from distill.evaluation.curve import Estimate, curves
from distill.evaluation.guardrails import Comparison, check_judge
from distill.evaluation.guardrails import Guardrail as GateGuard
from distill.evaluation.quality import Scale, scale_at
from distill.evaluation.resample import Bootstrap, conversation_index
from distill.evaluation.verdict import CheckpointResult, CurvePoint, Verdict
from distill.nightly.context import Night
from distill.nightly.results import ScoreResult
from distill.nightly.scored_samples import PolicySamples
from distill.nightly.steps.gate import bounds, read_verdict
from distill.report.facts import (
    Answer,
    Bars,
    Control,
    Curve,
    Decision,
    EquivalentN,
    Guard,
    Interval,
    Judge,
    Measured,
    Point,
    SideBySide,
    Tried,
)

_BINS = 40
_PATH_POINTS = 400
_SHOWN = 12
_FLOORS = ("distinct answers", "distinct word pairs", "token entropy")


class Evidence:
    """Reads a night whose gate is through; each method is one part of its facts.

    Args:
        night: The night.
        scored: The result of its score step.
        every: Its draws and rewards.
    """

    def __init__(self, night: Night, scored: ScoreResult, every: list[PolicySamples]) -> None:
        self._night = night
        self._scored = scored
        self._verdict: Verdict = read_verdict(night.run)
        self._sampled = every
        self._served = next(each for each in self._old if each.temperature == self._verdict.serving_temperature)
        self._scale: Scale = scale_at(self._served.rewards_PM)
        self._best = _best_candidate(self._verdict)
        self._new = next(
            each
            for each in self._sampled
            if (each.policy.side, each.policy.name, each.temperature)
            == ("new", self._best.checkpoint, self._best.temperature)
        )

    @property
    def _old(self) -> list[PolicySamples]:
        return [each for each in self._sampled if each.policy.side == "old"]

    def measured(self) -> Measured:
        """Curves of everything drawn, and what one new draw is worth."""
        verdict, guards = self._verdict, self._guards()
        length = next((guard.value for guard in guards if guard.name == "length"), None)
        return Measured(
            prompts=verdict.prompts,
            draws=len(self._served.samples[0]),
            max_tokens=self._served.policy.plan.max_tokens,
            reward_model=self._scored.select.model,
            unit=f"standard deviations within a prompt of the serving policy at temperature "
            f"{verdict.serving_temperature:g}; 0 is one of its draws",
            curves=[self._curve(each) for each in self._sampled],
            controls=self._controls(),
            equivalent_n=self._worths(),
            length_ratio=None if length is None else 1 + length,
            spread_ratio=self._best.sd_ratio,
            rewards=self._bars([self._scale(each.rewards_PM) for each in self._sampled]),
            lengths=self._bars([each.texts.tokens_PM for each in self._sampled]),
        )

    def decision(self) -> Decision:
        """The verdict with every trial, and the guards of the checkpoint that won or came nearest."""
        verdict, guards = self._verdict, self._guards()
        judge = next((guard for guard in guards if guard.name == "judge"), None)
        return Decision(
            promote=verdict.promote,
            n_old=verdict.n_now,
            n_new=verdict.n_new if verdict.promote else None,
            checkpoint=verdict.checkpoint,
            why=verdict.why,
            alpha=verdict.alpha,
            threshold=verdict.threshold,
            margin=verdict.delta,
            more_prompts=verdict.more_prompts,
            tried=[_tried(each, place, verdict) for each in verdict.candidates for place in range(len(each.tests))],
            guards=[_guard(guard) for guard in guards if guard.name != "judge"],
            judge=None
            if judge is None or self._scored.judge is None
            else Judge(
                name=self._scored.judge.model,
                agrees=judge.passed,
                difference=Interval(mean=judge.value, low=judge.low, high=judge.high),
                detail=judge.why,
            ),
        )

    def samples(self) -> list[SideBySide]:
        """A dozen prompts, evenly over all, answered by both policies as they would serve them."""
        verdict = self._verdict
        count = len(self._new.samples)
        places = sorted({round(place) for place in np.linspace(0, count - 1, min(_SHOWN, count))})
        n_new = verdict.n_new if verdict.promote else max(verdict.n_now - 1, 1)
        return [
            SideBySide(
                messages=[dict(message) for message in self._new.samples[place][0].prompt.messages],
                old=self._pick(self._served, place, verdict.n_now),
                new=self._pick(self._new, place, n_new),
            )
            for place in places
        ]

    def _pick(self, side: PolicySamples, place: int, n: int) -> Answer:
        """What the gateway would have answered from the first n draws."""
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

    def _worths(self) -> list[EquivalentN]:
        best, temperature = self._best, self._verdict.serving_temperature
        found = [
            _worth("the old policy at its best temperature for each n", best.worth_at_best),
            _worth(f"the old policy at temperature {temperature:g}", best.worth_at_serving),
        ]
        if best.worth_at_base is not None:
            found.append(_worth("the base at its best temperature for each n", best.worth_at_base))
        return found

    def _curve(self, side: PolicySamples) -> Curve:
        points = self._points(side)
        tokens_K = curves(side.rewards_PM, side.texts.tokens_PM, [point.n for point in points]).mean(axis=0)
        return Curve(
            side=side.policy.side,
            name=side.policy.name,
            temperature=side.temperature,
            points=[
                Point(n=point.n, reward=Interval(mean=point.mean, low=point.low, high=point.high), tokens=float(tokens))
                for point, tokens in zip(points, tokens_K, strict=True)
            ],
            sd=float(np.sqrt(self._scale(side.rewards_PM).var(axis=1, ddof=1).mean())),
            mean_tokens=float(side.texts.tokens_PM.mean()),
            truncated=float(side.texts.truncated_PM.mean()),
            distinct=float(side.texts.distinct_P.mean()),
        )

    def _points(self, side: PolicySamples) -> Sequence[CurvePoint]:
        if side.policy.side == "old":
            return self._verdict.serving_curves[f"{side.temperature:g}"]
        return next(
            each.curve
            for each in self._verdict.candidates
            if (each.checkpoint, each.temperature) == (side.policy.name, side.temperature)
        )

    def _controls(self) -> list[Control]:
        found = []
        for points in zip(*self._verdict.serving_curves.values(), strict=True):
            t, best = max(zip(self._verdict.serving_curves, points, strict=True), key=lambda pair: pair[1].mean)
            reward = Interval(mean=best.mean, low=best.low, high=best.high)
            found.append(Control(n=best.n, temperature=float(t), reward=reward))
        return found

    def _guards(self) -> list[GateGuard]:
        """The gate's own where it looked at them; else of the smallest step down, so that the report can tell."""
        verdict = self._verdict
        looked_at = [trial for trial in self._best.tests if trial.guardrails]
        if looked_at:
            chosen = [trial for trial in looked_at if verdict.promote and trial.n == verdict.n_new]
            return list((chosen or looked_at)[-1].guardrails)
        n = max(verdict.n_now - 1, 1)
        index_P = conversation_index(self._sampled[0].conversations)
        sides = (verdict.n_now, self._new.scored, n, index_P, Bootstrap(int(index_P.max()) + 1))
        judge = check_judge([each.scored for each in self._old], *sides)
        found = Comparison(self._served.scored, *sides).check(bounds(self._night.settings.evaluation))
        return [*found, *([judge] if judge is not None else [])]

    def _bars(self, values: Sequence[np.ndarray]) -> list[Bars]:
        """Histograms on one axis: of the serving policy, and of the checkpoint that won or came nearest."""
        shown = [
            (side, each)
            for side, each in zip(self._sampled, values, strict=True)
            if side is self._new or side is self._served
        ]
        low, high = (float(f([f(each) for _, each in shown])) for f in (np.min, np.max))
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        return [
            Bars(
                side=side.policy.side,
                name=side.policy.name,
                temperature=side.temperature,
                edges=edges.tolist(),
                counts=np.histogram(each, edges)[0].tolist(),
            )
            for side, each in shown
        ]


def _best_candidate(verdict: Verdict) -> CheckpointResult:
    """The checkpoint that was chosen, or the one that came nearest."""
    for each in verdict.candidates:
        if verdict.promote and (each.checkpoint, each.temperature) == (verdict.checkpoint, verdict.temperature):
            return each
    return max(verdict.candidates, key=lambda each: each.tests[0].gain_mean)


def _tried(judged: CheckpointResult, place: int, verdict: Verdict) -> Tried:
    trial = judged.tests[place]
    step = max(1, -(-len(trial.path) // _PATH_POINTS))
    reason = ""
    if not trial.passed:
        earlier = next((each.n for each in judged.tests[:place] if not each.passed), None)
        reason = (
            f"evidence {trial.highest_wealth:.2f}, {verdict.threshold:.0f} asked, against {trial.against}"
            if earlier is None
            else f"not asked: N′ = {earlier} did not pass"
        )
    else:
        reason = "; ".join(guard.why for guard in trial.guardrails if not guard.passed)
    return Tried(
        checkpoint=judged.checkpoint,
        n=trial.n,
        passed=trial.passed,
        difference=_interval(trial.difference),
        wealth=trial.highest_wealth,
        path=[*trial.path[:-1:step], *trial.path[-1:]],
        reason=reason,
    )


def _guard(guard: GateGuard) -> Guard:
    two_sided, floor = guard.name == "length", guard.name in _FLOORS
    return Guard(
        name=guard.name,
        passed=guard.passed,
        detail=guard.why,
        value=guard.value,
        low=-guard.bound if two_sided else guard.bound if floor else None,
        high=None if floor else guard.bound,
    )


def _worth(against: str, found: equivalent.EquivalentN) -> EquivalentN:
    return EquivalentN(against=against, value=found.value, low=found.low, high=found.high, at_least=found.beyond)


def _interval(estimate: Estimate) -> Interval:
    return Interval(mean=estimate.mean, low=estimate.low, high=estimate.high)
