"""The gate's verdict: its facts, and the sentences that state it.

An ``alias`` is the key in verdict.json, which earlier releases wrote too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated

from pydantic import Field

from distill.evaluation.curve import Estimate
from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.guardrails import Guardrail

VERDICT_FILE = "verdict.json"

_POWER = 0.8  # chance of passing with the number of prompts that a failed night asks for
_COST = 1.25  # prompts that this takes, relative to a fixed-sample test; slightly more below 300 prompts


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Mean reward of the best of n, in standard units, with its interval."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class NonInferiorityTest:
    """The test of one N′. Differences are on the [0, 1] scale."""

    n: int
    passed: bool
    """Its wealth reached the threshold, and so did that of every larger N′."""
    difference: Estimate
    """D: best of N′ of the new policy − best of N of the old one at its best temperature."""
    gain_mean: float
    """Mean of x = D + δ, against the control that was hardest to beat."""
    gain_sd: float
    """Standard deviation of x over conversations."""
    against: str
    """The control that was hardest to beat, in words; ``path`` is against it."""
    wealth: float
    highest_wealth: float
    crossed_at: int | None
    """Conversations after which every control was beaten; None if not all were."""
    path: list[float]
    """The wealth after each conversation."""
    fixed_sample_p: float
    """p-value of a t-test on the same differences, for comparison."""
    guardrails: Annotated[tuple[Guardrail, ...], Field(alias="guards")] = ()
    """Checked from the smallest N′ that passed upwards, until all of one hold."""


@dataclass(frozen=True, slots=True)
class CheckpointResult:
    """Everything measured for one checkpoint at one temperature."""

    checkpoint: str
    temperature: float
    chosen: int | None
    """Smallest N′ that passed and whose guardrails hold."""
    tests: Annotated[list[NonInferiorityTest], Field(alias="trials")]
    """From N − 1 downwards."""
    curve: list[CurvePoint]
    sd_ratio: float
    """Within-prompt spread, new over old. Reported, not tested: the curve at N′ already includes it."""
    worth_at_serving: EquivalentN
    """Old samples, at the serving temperature, that one new sample is worth."""
    worth_at_best: EquivalentN
    """Old samples, at the best temperature for each n, that one new sample is worth: the headline."""
    worth_at_base: EquivalentN | None = None
    """Samples of the base, at its best temperature for each n: the gain of all nights. None while the base serves."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision whether N may shrink, with all its evidence."""

    promote: bool
    n_now: int
    n_base: int | None
    """N of the base before the first night, whose quality is required too; None while the base serves."""
    n_new: int
    """``n_now`` where nothing is promoted."""
    checkpoint: str | None
    temperature: float | None
    why: str
    more_prompts: int | None
    """Conversations to add for a good chance to pass; None: passed, or no number would do."""
    prompts: int
    conversations: int
    alpha: float
    threshold: float
    """Wealth that each checkpoint had to reach."""
    delta: float
    """The worth of one sample: best of N − best of N − 1 of the old policy at its best temperature."""
    serving_temperature: float
    control_temperature: float
    """The temperature at which the old policy's best of N is highest."""
    serving_curves: dict[str, list[CurvePoint]]
    """By temperature."""
    candidates: list[CheckpointResult]

    @property
    def best(self) -> CheckpointResult:
        """The checkpoint that was chosen, or else the one that came nearest."""
        chosen = (self.checkpoint, self.temperature)
        found = [each for each in self.candidates if self.promote and (each.checkpoint, each.temperature) == chosen]
        return found[0] if found else max(self.candidates, key=lambda each: each.tests[0].gain_mean)

    @property
    def fewer(self) -> int:
        """N − 1, the number of old samples that the new policy has to match; 1 at N = 1."""
        return max(self.n_now - 1, 1)

    @property
    def summary(self) -> str:
        """The verdict in one short sentence; ``why`` has the numbers."""
        if self.promote:
            return f"{self.outcome}: the best of {self.n_new} new samples beats the best of {self.fewer} old ones"
        found = self.guarded
        if found is not None:
            failed = ", ".join(each.label for each in found[1].guardrails if not each.passed)
            return f"{self.outcome}: {found[1].n} samples would keep the reward, but guardrails fail: {failed}"
        if self.more_prompts is not None:
            return f"{self.outcome}: not enough evidence yet, about {self.more_prompts:,} more prompts would settle it"
        return f"{self.outcome}: on this evidence the new policy is no better"

    @property
    def guarded(self) -> tuple[CheckpointResult, NonInferiorityTest] | None:
        """The test at the largest N′ whose guardrails were checked, with its checkpoint."""
        found = [(each, test) for each in self.candidates for test in each.tests if test.guardrails]
        return max(found, key=lambda pair: pair[1].n, default=None)

    @property
    def outcome(self) -> str:
        if not self.promote:
            return f"N stays {self.n_now}"
        return f"N falls from {self.n_now} to {self.n_new}" if self.n_now > 1 else "N stays 1, with the new policy"


def explain(verdict: Verdict) -> tuple[str, int | None]:
    """Return the reason with its numbers, for an operator, and how many more prompts would help."""
    outcome = verdict.outcome
    if verdict.promote:
        (test,) = (test for test in verdict.best.tests if test.n == verdict.n_new)
        base = f" and the base's best of {max(verdict.n_base - 1, 1)}" if verdict.n_base is not None else ""
        return (
            f"{outcome}: the best of {test.n} of {verdict.checkpoint} beats the old policy's best of "
            f"{verdict.fewer}{base} at every temperature (evidence {test.highest_wealth:.1f} of "
            f"{verdict.threshold:.0f} needed, reached after {test.crossed_at} of {verdict.conversations} conversations)"
        ), None
    if verdict.guarded is not None:
        each, test = verdict.guarded
        broken = "; ".join(guardrail.why for guardrail in test.guardrails if not guardrail.passed)
        return f"{outcome}: {each.checkpoint} keeps the reward at N = {test.n}, but {broken}", None
    test = verdict.best.tests[0]
    measured = (
        f"{outcome}: the best of {test.n} of {verdict.best.checkpoint} scores {test.gain_mean:+.4f} compared with "
        f"{test.against} (one sample is worth {verdict.delta:.4f})"
    )
    needed = _needed(test, verdict)
    if needed is None:
        return f"{measured}: on this evidence it is no better, {_prospect(test, verdict)}", None
    return f"{measured}: not enough evidence, about {needed} more conversations are needed", needed


def _prospect(test: NonInferiorityTest, verdict: Verdict) -> str:
    """State whether a mean below zero may be chance, as it often is on few conversations."""
    reach = test.gain_mean + 2 * test.gain_sd / math.sqrt(verdict.conversations)
    if reach > 0:
        return f"but {verdict.conversations} conversations are too few to rule out that it is"
    return "and more prompts of this kind would not change that"


def _needed(test: NonInferiorityTest, verdict: Verdict) -> int | None:
    """Return how many conversations to add to pass with 80 % at this mean and spread; None if no number would do."""
    if test.gain_mean <= 0:
        return None
    z = NormalDist().inv_cdf(1 - 1 / verdict.threshold) + NormalDist().inv_cdf(_POWER)
    total = _COST * (z * test.gain_sd / test.gain_mean) ** 2
    # It did fail: a lucky mean must not promise success for a handful of prompts.
    return math.ceil(max(total - verdict.conversations, 0.1 * verdict.conversations))
