"""What the facts say: which curve stands for which policy, and each figure's title, which says what is seen in it."""

from __future__ import annotations

import json
from typing import Any

from distill.report.facts import Bars, Curve, Decision, EquivalentN, Measured, NightFacts, PolicyVersion, Tried
from distill.report.words import change, count, fixed, wealth

FEW_VERSIONS = 2


def verdict(facts: NightFacts) -> str:
    """The night in one sentence: where N goes, or why it stays and what it would take."""
    decision = facts.decision
    if decision is None or facts.outcome not in ("promoted", "kept"):
        return facts.headline
    old, fewer = decision.n_old, max(decision.n_old - 1, 1)
    if decision.promote:
        goes = f"N falls from {old} to {decision.n_new}" if decision.n_new != old else f"N stays {old}, better served"
        return f"{goes}: the best of {decision.n_new} new draws beats the best of {fewer} old ones"
    passed, failed = _passed(decision), failed_guards(decision)
    if passed and failed:
        return f"N stays {old}: {min(passed)} draws would keep the reward, but guards fail: {', '.join(failed)}"
    if decision.more_prompts is not None:
        needed = f"about {count(decision.more_prompts)} more held-out prompts would settle it"
        return f"N stays {old}: not enough evidence yet, {needed}"
    if decision.tried and not passed:
        return f"N stays {old}: on this evidence the new policy is no better"
    return facts.headline


def details(facts: NightFacts) -> list[str]:
    """What the night itself says of its verdict, without saying it twice."""
    why = facts.decision.why if facts.decision else ""
    told = [why] if why in facts.headline else [why, facts.headline]
    return [words for words in told if words not in verdict(facts)]


def best_checkpoint(facts: NightFacts) -> str | None:
    """The checkpoint that the report is about: the one promoted, else the one that came nearest."""
    decision = facts.decision
    if decision is not None and decision.checkpoint is not None:
        return decision.checkpoint
    drawn = [bars.name for bars in facts.measured.rewards if bars.side == "new"] if facts.measured else []
    if drawn:
        return drawn[0]
    tried = decision.tried if decision is not None else []
    return max(tried, key=lambda one: (one.passed, one.wealth)).checkpoint if tried else None


def _passed(decision: Decision) -> list[int]:
    return [one.n for one in decision.tried if one.passed]


def failed_guards(decision: Decision) -> list[str]:
    """Names of the guards that do not hold; the held-out reward model is one of them."""
    judge = [] if decision.judge is None or decision.judge.agrees else ["held-out reward model"]
    return [*(guard.name for guard in decision.guards if not guard.passed), *judge]


def new_curve(facts: NightFacts) -> Curve | None:
    """The new policy's curve: that checkpoint's, at the temperature that serves it best."""
    curves = [curve for curve in facts.measured.curves if curve.side == "new"] if facts.measured else []
    named = [curve for curve in curves if curve.name == best_checkpoint(facts)] or curves
    place = (facts.decision.n_new if facts.decision else None) or 1
    return max(named, key=lambda curve: reward_at(curve, place), default=None)


def reward_at(curve: Curve, n: int) -> float:
    """The expected best of ``n``, or of as many as were drawn."""
    return next((point.reward.mean for point in reversed(curve.points) if point.n <= n), float("-inf"))


def new_bars(facts: NightFacts, bars: list[Bars]) -> Bars | None:
    """The new policy's histogram among them."""
    curve = new_curve(facts)
    new = [one for one in bars if one.side == "new"]
    key = (curve.name, curve.temperature) if curve else None
    return next((one for one in new if (one.name, one.temperature) == key), new[0] if new else None)


def old_bars(facts: NightFacts, bars: list[Bars]) -> Bars | None:
    """The old policy's histogram at the temperature that the new one is held against."""
    old = [one for one in bars if one.side == "old"]
    return next((one for one in old if one.temperature == control_temperature(facts)), old[0] if old else None)


def control_temperature(facts: NightFacts) -> float | None:
    """The old policy's best temperature at its own N."""
    controls = facts.measured.controls if facts.measured else []
    at = facts.decision.n_old if facts.decision else facts.serving.n
    return min(controls, key=lambda control: abs(control.n - at)).temperature if controls else None


def equivalent(measured: Measured | None) -> EquivalentN | None:
    """k*, the headline's."""
    return measured.equivalent_n[0] if measured and measured.equivalent_n else None


def worth(one: EquivalentN) -> str:
    """k* with its bound: 2.2, or at least 8."""
    return f"at least {one.value:g}" if one.at_least else fixed(one.value, 1)


def bounds(one: EquivalentN) -> str:
    """k*'s 95 % interval; open where the old curve ends before it does."""
    return f"{fixed(one.low, 1)} or more" if one.at_least else f"{fixed(one.low, 1)} to {fixed(one.high, 1)}"


def curves_title(facts: NightFacts) -> str:
    """What the reward-against-N figure shows."""
    one = equivalent(facts.measured)
    if one is None:
        return "Reward against N"
    return (
        f"One new draw is worth {worth(one)} old ones"
        if one.value > 1
        else "One new draw is worth no more than an old one"
    )


def evidence_title(decision: Decision) -> str:
    """What the gate's figure shows."""
    if decision.promote:
        return f"The best of {decision.n_new} new draws beats the best of {max(decision.n_old - 1, 1)} old ones"
    enough, failed = _passed(decision), failed_guards(decision)
    if enough and failed:
        return f"The evidence sufficed at N′ = {min(enough)}, but guards fail: {', '.join(failed)}"
    if enough:
        return f"The evidence sufficed at N′ = {min(enough)}, yet N stays {decision.n_old}"
    most = max((one.wealth for one in decision.tried), default=decision.threshold)
    reached = f": {wealth(most)} of the {decision.threshold:g} needed" if most < decision.threshold else ""
    return f"Not enough evidence for any N′ below {decision.n_old}{reached}"


def loss_title(facts: NightFacts) -> str:
    """What the loss figure shows: the mean of the first tenth of the steps against that of the last."""
    loss = [point.loss for point in facts.trained.loss] if facts.trained else []
    if not loss:
        return "Loss"
    part = max(1, len(loss) // 10)
    first, last = sum(loss[:part]) / part, sum(loss[-part:]) / part
    return (
        f"Loss went from {fixed(first)} to {fixed(last)} in {count(facts.trained.steps if facts.trained else 0)} steps"
    )


def spread_title(measured: Measured) -> str:
    """What the rewards' histogram shows."""
    if measured.spread_ratio is None:
        return "Rewards of single draws"
    return f"Rewards: the spread changed by {change(measured.spread_ratio)}"


def length_title(measured: Measured) -> str:
    """What the lengths' histogram shows."""
    if measured.length_ratio is None:
        return "Lengths of single draws"
    return f"Lengths: the served answers changed by {change(measured.length_ratio)}"


def history_title(history: list[PolicyVersion]) -> str:
    """What N did over all nights."""
    if not history:
        return "No policy has been published yet"
    first, last = history[0].n, history[-1].n
    if first == last:
        return f"N is {last}" if len({version.n for version in history}) == 1 else f"N is back at {last}"
    return f"N went from {first} to {last} over {len(history)} policies"


def question(messages: list[dict[str, Any]]) -> str:
    """The last thing that was said to the policies, as text."""
    return content(messages[-1]) if messages else ""


def content(message: dict[str, Any]) -> str:
    """A message's text, whatever shape a caller gave it."""
    value = message.get("content")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "\n".join(part["text"] for part in value)
    return json.dumps(message if value is None else value, ensure_ascii=False, default=str)


def rows(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value)."""
    flat: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            flat += rows(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return flat


def crossing(one: Tried, threshold: float, prompts: int) -> int | None:
    """After about how many prompts its e-process first reached the threshold."""
    place = next((place for place, value in enumerate(one.path, start=1) if value >= threshold), None)
    return None if place is None else round(place / len(one.path) * prompts)
