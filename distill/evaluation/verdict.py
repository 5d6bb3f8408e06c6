"""What the gate says: facts that become JSON as they are, and a sentence for the operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from distill.evaluation.curve import Estimate
from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.guards import Guard

_POWER = 0.8  # of the night that "about K more prompts" promises
_COST = 1.25  # prompts that asks for, over what a fixed-sample test needs; a little more below 300 prompts


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Mean reward of the best of n, in standard units, with its interval."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trial:
    """The test of one N′. Differences are on the [0, 1] scale."""

    n: int
    passed: bool
    """Its wealth reached the threshold, and so did that of every larger N′."""
    difference: Estimate
    """D: best of N′ of the new policy − best of N of the old one at its best temperature."""
    gain_mean: float
    """Mean of x = D + δ, against what was hardest to beat."""
    gain_sd: float
    """Its standard deviation over conversations."""
    against: str
    """In words, what was hardest to beat; the path is against it."""
    wealth: float
    highest_wealth: float
    crossed_at: int | None
    """Conversations after which everything was beaten; None: not all was."""
    path: list[float]
    fixed_sample_p: float
    """What a t-test of a fixed sample would have said: for comparison."""
    guards: tuple[Guard, ...] = ()
    """Looked at from the smallest N′ that passed upwards, until all of one hold."""


@dataclass(frozen=True, slots=True)
class Judged:
    """All that is known of one checkpoint."""

    checkpoint: str
    temperature: float
    chosen: int | None
    """Smallest N′ that passed and whose guards hold."""
    trials: list[Trial]
    curve: list[CurvePoint]
    sd_ratio: float
    """Within-prompt spread, new over old. Told, not gated: the curve at N′ has paid for it."""
    worth_at_serving: EquivalentN
    """Old draws, at the temperature served, that one new draw is worth."""
    worth_at_best: EquivalentN
    """Old draws, at the best temperature for each n, that one new draw is worth: the headline."""
    worth_at_base: EquivalentN | None = None
    """Draws of the base, at its best temperature for each n: all nights together; None: the base still serves."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """May N shrink? ``dataclasses.asdict`` of it is JSON."""

    promote: bool
    n_now: int
    n_base: int | None
    """N of the base before the first night, whose quality was asked for too; None: the base still serves."""
    n_new: int
    """``n_now`` where nothing is promoted."""
    checkpoint: str | None
    temperature: float | None
    why: str
    more_prompts: int | None
    """Conversations to add for a good chance on what was measured; None: passed, or no number would do."""
    prompts: int
    conversations: int
    alpha: float
    threshold: float
    """Wealth each checkpoint had to reach."""
    delta: float
    """The worth of one sample: best of N − best of N − 1 of the old policy at its best temperature."""
    serving_temperature: float
    control_temperature: float
    """Where the old policy's best of N is highest."""
    serving_curves: dict[str, list[CurvePoint]]
    """By temperature."""
    candidates: list[Judged]


def explain(verdict: Verdict) -> tuple[str, int | None]:
    """The reason in an operator's words, and how many more prompts would help."""
    fewer = max(verdict.n_now - 1, 1)
    if verdict.promote:
        (trial,) = (
            trial
            for each in verdict.candidates
            if (each.checkpoint, each.temperature) == (verdict.checkpoint, verdict.temperature)
            for trial in each.trials
            if trial.n == verdict.n_new
        )
        what = f"N may fall from {verdict.n_now} to {verdict.n_new}" if verdict.n_now > 1 else "N stays 1"
        base = f" and the base's best of {max(verdict.n_base - 1, 1)}" if verdict.n_base is not None else ""
        return (
            f"{what}: the best of {trial.n} of {verdict.checkpoint} beats the old policy's best of {fewer}{base} "
            f"at every temperature drawn (evidence {trial.highest_wealth:.1f}, {verdict.threshold:.0f} asked, after "
            f"{trial.crossed_at} of {verdict.conversations} conversations)"
        ), None
    guarded = [(each, trial) for each in verdict.candidates for trial in each.trials if trial.guards]
    if guarded:
        each, trial = max(guarded, key=lambda found: found[1].n)
        broken = "; ".join(guard.why for guard in trial.guards if not guard.passed)
        return f"N stays {verdict.n_now}: {each.checkpoint} keeps the reward at N = {trial.n}, but {broken}", None
    each = max(verdict.candidates, key=lambda each: each.trials[0].gain_mean)
    trial = each.trials[0]
    measured = (
        f"N stays {verdict.n_now}: the best of {trial.n} of {each.checkpoint} lies {trial.gain_mean:+.4f} from "
        f"{trial.against} (a sample is worth {verdict.delta:.4f})"
    )
    needed = _needed(trial, verdict)
    if needed is None:
        return f"{measured}: on this evidence it is no better, {_hope(trial, verdict)}", None
    return f"{measured}: not enough evidence, needs about {needed} more conversations", needed


def _hope(trial: Trial, verdict: Verdict) -> str:
    """Whether a mean below zero may be chance: on few conversations it often is."""
    reach = trial.gain_mean + 2 * trial.gain_sd / math.sqrt(verdict.conversations)
    if reach > 0:
        return f"but {verdict.conversations} conversations are too few to rule out that it is"
    return "and more prompts of this kind would not change that"


def _needed(trial: Trial, verdict: Verdict) -> int | None:
    """Conversations to add so that a night with this mean and spread passes with 80 %; None: none would do."""
    if trial.gain_mean <= 0:
        return None
    z = NormalDist().inv_cdf(1 - 1 / verdict.threshold) + NormalDist().inv_cdf(_POWER)
    total = _COST * (z * trial.gain_sd / trial.gain_mean) ** 2
    # It did fail: a lucky mean must not promise success for a handful.
    return math.ceil(max(total - verdict.conversations, 0.1 * verdict.conversations))
