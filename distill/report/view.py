"""Titles and tables that the page derives from the facts."""

from __future__ import annotations

import json
from typing import Any

from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.guardrails import JUDGE
from distill.evaluation.verdict import CheckpointResult, CurvePoint, NonInferiorityTest, Verdict
from distill.report.facts import Measured, NightFacts, PolicyVersion, SampleSummary
from distill.report.formats import change, count, fixed, wealth

MIN_VERSIONS = 2
"""Fewer published policies have no figure of N over time."""


def title(facts: NightFacts) -> str:
    """Return the night in one short sentence."""
    return facts.headline if facts.verdict is None else facts.verdict.summary


def points(verdict: Verdict, samples: SampleSummary) -> list[CurvePoint]:
    """Return the curve of a sample set; none where the gate did not compare it."""
    if samples.side == "old":
        return verdict.serving_curves.get(f"{samples.temperature:g}", [])
    found = (each for each in verdict.candidates if _is_of(samples, each))
    return next((each.curve for each in found), [])


def new_samples(facts: NightFacts) -> SampleSummary | None:
    """Return the sample set of the checkpoint that was chosen or came nearest."""
    if facts.verdict is None or facts.measured is None:
        return None
    best = facts.verdict.best
    return next((each for each in facts.measured.sample_sets if each.side == "new" and _is_of(each, best)), None)


def _is_of(samples: SampleSummary, result: CheckpointResult) -> bool:
    return (samples.name, samples.temperature) == (result.checkpoint, result.temperature)


def controls(verdict: Verdict) -> list[tuple[float, CurvePoint]]:
    """Return for each n the temperature at which the old policy is best, with its point there."""
    curves = [[(float(t), point) for point in points] for t, points in verdict.serving_curves.items()]
    return [max(column, key=lambda pair: pair[1].mean) for column in zip(*curves, strict=False)]


def reward_at(curve: list[CurvePoint], n: int) -> float:
    """Return the expected best of ``n``, or of as many as were drawn."""
    return next(point.mean for point in reversed(curve) if point.n <= n)


def worths(verdict: Verdict) -> list[tuple[str, EquivalentN]]:
    """Return k* against each reference, the headline first."""
    best = verdict.best
    found = [
        ("the old policy at its best temperature for each N", best.worth_at_best),
        (f"the old policy at temperature {verdict.serving_temperature:g}", best.worth_at_serving),
        ("the base at its best temperature for each N", best.worth_at_base),
    ]
    return [(against, one) for against, one in found if one is not None]


def worth(one: EquivalentN) -> str:
    """Format k*: 2.2, or at least 8."""
    return f"at least {one.value:g}" if one.beyond else fixed(one.value, 1)


def interval(one: EquivalentN) -> str:
    """Format the 95 % interval of k*; open where the old curve ends below it."""
    return f"{fixed(one.low, 1)} or more" if one.beyond else f"{fixed(one.low, 1)} to {fixed(one.high, 1)}"


def curves_title(verdict: Verdict) -> str:
    one = verdict.best.worth_at_best
    if one.value > 1:
        return f"One new draw is worth {worth(one)} old ones"
    return "One new draw is worth no more than an old one"


def evidence_title(verdict: Verdict) -> str:
    enough = [test.n for test in verdict.best.tests if test.passed]
    if enough:
        return f"There is enough evidence down to N′ = {min(enough)}"
    most = max(test.highest_wealth for test in verdict.best.tests)
    reached = f": {wealth(most)} of the {verdict.threshold:g} needed" if most < verdict.threshold else ""
    return f"There is not enough evidence for any N′{reached}"


def is_chosen(verdict: Verdict, result: CheckpointResult, test: NonInferiorityTest) -> bool:
    return verdict.promote and result == verdict.best and test.n == verdict.n_new


def finding(verdict: Verdict, result: CheckpointResult, test: NonInferiorityTest) -> str:
    """Return the reason why a test did not lead to a promotion; empty where it passed and its guardrails hold."""
    if test.passed:
        return "; ".join(each.why for each in test.guardrails if not each.passed)
    failed = next(each.n for each in result.tests if not each.passed)
    if failed != test.n:
        return f"not tested, because N′ = {failed} did not pass"
    return f"evidence {wealth(test.highest_wealth)} of {verdict.threshold:.0f} needed, against {test.against}"


def judge_disagrees(measured: Measured) -> str | None:
    """Return what the held-out reward model found, if it contradicts the claim."""
    return next((each.why for each in measured.guardrails if each.name == JUDGE and not each.passed), None)


def loss_title(facts: NightFacts) -> str:
    """Return the mean loss of the first tenth of the steps, and of the last."""
    if facts.trained is None or not facts.trained.loss:
        return "Loss"
    loss = [point.loss for point in facts.trained.loss]
    part = max(1, len(loss) // 10)
    first, last = sum(loss[:part]) / part, sum(loss[-part:]) / part
    return f"Loss went from {fixed(first)} to {fixed(last)} in {count(facts.trained.steps)} steps"


def spread_title(verdict: Verdict) -> str:
    return f"Rewards: the spread changed by {change(verdict.best.sd_ratio)}"


def length_title(measured: Measured) -> str:
    length = next((each.value for each in measured.guardrails if each.name == "length"), None)
    if length is None:
        return "Lengths of single samples"
    return f"Lengths: the served answers changed by {change(1 + length)}"


def history_title(history: list[PolicyVersion]) -> str:
    if not history:
        return "No policy has been published yet"
    first, last = history[0].n, history[-1].n
    if first == last:
        return f"N is {last}" if len({version.n for version in history}) == 1 else f"N is back at {last}"
    return f"N went from {first} to {last} over {len(history)} policies"


def question(messages: list[dict[str, Any]]) -> str:
    """Return the last message that the policies answered, as text."""
    return content(messages[-1]) if messages else ""


def content(message: dict[str, Any]) -> str:
    """Return a message's text in any form that callers may use."""
    value = message.get("content")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "\n".join(part["text"] for part in value)
    return json.dumps(message if value is None else value, ensure_ascii=False, default=str)


def rows(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted name, value)."""
    flat: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat += rows(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return flat
