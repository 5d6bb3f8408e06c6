"""The gate: decide from held-out rewards whether N may shrink, and how far. Pure: no I/O.

**The claim.** D = best of N′ of the new policy − best of N of the old one. The test is one of non-inferiority,
H0: E[D] ≤ −δ, with the margin δ = best of N − best of N − 1 of the old policy: the worth of one sample. For each prompt
D + δ is x = best of N′ (new) − best of N − 1 (old), so δ never has to be estimated, and the test is exact in it. At
N = 1 nothing can shrink; there x compares one sample with one sample, and a better policy may replace the old one.

**The scale.** Rewards become mid-ranks among the serving policy's own at its serving temperature: in [0, 1] whatever
the reward model's scale, so x lies in [−1, 1]. δ, D and x are on that scale; the curves are in standard units (0: the
mean of one serving sample, 1: pooled within-prompt SD).

**The control** is the old policy at its best temperature. Which temperature that is is unknown, so the new policy has
to beat **every** temperature that was sampled: H0 "not better than the best" is the union of "not better than t", and
a test that requires all of them errs only if the one for the true best does (intersection-union). Nothing is selected
by the data, so nothing has to be corrected. Reported means use the temperature that looks best; that bias favours the
old policy.

**The base.** One sample may be lost a night, and many nights may lose many. So once an adapter serves, x is also
tested against the base as it served before the first night: best of N₀ − 1, at every temperature sampled from it. By
the same intersection-union nothing has to be corrected, and every night keeps the quality of best-of-N₀ but for one
sample.

**Several N′.** They are tested from N − 1 downwards, each at the full level, and nothing after the first failure: the
first true null is passed with chance ≤ α (fixed sequence), so all N′ together err with α. The gate chooses the smallest
N′ that passed and whose guardrails hold. N′ = N is not tested: passing at N − 1 says that the new policy is better at
the same n, so a policy that fails there has no claim to take over at N, where it could be worse by a whole sample.

**Several checkpoints** (or temperatures of one) share α equally: each wealth must reach (their number)/α. The other
valid way, picking one on a quarter of the prompts and testing it on the rest, promotes less: of 600 simulated nights
(8 → 4, 711 prompts, three checkpoints) 62 % against 79 % when all three are at D = 0, 48 % against 59 % when one is and
the others are at −δ/2 and −δ. It needs fewer samples, though; where those are expensive, pick one checkpoint on
*training* prompts and pass only that one.

**Several nights.** A new night has a new checkpoint, so its test is a new one at α: of many nights in which nothing was
learned, a share of at most α shrinks N by mistake. Live rewards are the second line of defence (promotion's guard).
Within one evaluation the wealth may be looked at after any prompt, given the planned number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from distill.errors import DataError
from distill.evaluation import eprocess
from distill.evaluation.curve import Floats, curves, within_prompt_sd
from distill.evaluation.equivalent import equivalent_n
from distill.evaluation.guardrails import Bounds, Comparison, check_judge
from distill.evaluation.quality import Scale, scale_at
from distill.evaluation.resample import Bootstrap, by_conversation, conversation_index
from distill.evaluation.scored import ScoredSamples
from distill.evaluation.verdict import CheckpointResult, CurvePoint, NonInferiorityTest, Verdict, explain


@dataclass(frozen=True, slots=True)
class Rules:
    """The gate's parameters."""

    alpha: float = 0.05
    """Largest chance that N shrinks although E[D] ≤ −δ, over all checkpoints and N′ of a night."""
    bounds: Bounds = field(default_factory=Bounds)
    """Limits of the guardrails."""
    least_n: int = 1
    """Smallest N′ tested."""
    resamples: int = 2000
    """Bootstrap samples."""
    seed: int = 0
    """Seed of the bootstrap."""


DEFAULTS = Rules()


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """The base, with ``n``, the N at which it served before the first night: every night must keep that quality."""

    n: int
    samples: Sequence[ScoredSamples]
    """Its sample sets, one a temperature, on the same prompts."""


class QuantileMap:
    """Map rewards to mid-ranks among reference rewards: (those below + half of those equal) / all."""

    def __init__(self, reference: Floats) -> None:
        self._sorted = np.sort(reference, axis=None)

    def __call__(self, rewards: Floats) -> Floats:
        """Return mid-ranks in [0, 1], in the same shape."""
        below, upto = (np.searchsorted(self._sorted, rewards, side=side) for side in ("left", "right"))
        ranks: Floats = (below + upto) / (2 * self._sorted.size)
        return ranks


def decide(
    serving: Sequence[ScoredSamples],
    serving_temperature: float,
    candidates: Sequence[ScoredSamples],
    *,
    n_now: int,
    n_max: int | None = None,
    baseline: Baseline | None = None,
    conversations: Sequence[str] | None = None,
    planned: int | None = None,
    rules: Rules = DEFAULTS,
) -> Verdict:
    """Return the verdict on a night's checkpoints.

    Args:
        serving: The serving policy's sample sets, one a temperature, on the same prompts in the same order.
        serving_temperature: The temperature it serves at.
        candidates: The sample sets of the night's checkpoints.
        n_now: Candidates that the policy chooses from now.
        n_max: Last n of the curves; default: the number of samples.
        baseline: The base before the first night; None while the base serves.
        conversations: Each prompt's conversation, in an order that does not depend on rewards; default: all differ.
        planned: Final number of conversations, for a look at the first part; default: those given.
        rules: The gate's parameters.

    Raises:
        DataError: Samples are missing, too few for N, or rewards are not finite.
    """
    prompts = len(conversations) if conversations is not None else _prompts(serving)
    _check(serving, serving_temperature, candidates, baseline, prompts, n_now)
    names = conversations if conversations is not None else [str(place) for place in range(prompts)]
    samples = min(each.rewards_PM.shape[1] for each in (*serving, *candidates))
    n_max = min(n_max or samples, samples)
    control = _Control(serving, serving_temperature, n_now, n_max, baseline, conversation_index(names), rules)
    alpha = rules.alpha / len(candidates)
    results = [control.test(candidate, alpha, planned) for candidate in candidates]
    allowed = [(test, each) for each in results for test in each.tests if each.chosen == test.n]
    test, winner = min(allowed, key=lambda pair: (pair[0].n, -pair[0].difference.mean), default=(None, None))
    verdict = Verdict(
        promote=winner is not None,
        n_now=n_now,
        n_base=baseline.n if baseline is not None else None,
        n_new=test.n if test is not None else n_now,
        checkpoint=winner.checkpoint if winner is not None else None,
        temperature=winner.temperature if winner is not None else None,
        why="",
        more_prompts=None,
        prompts=prompts,
        conversations=control.conversations,
        alpha=rules.alpha,
        threshold=1 / alpha,
        delta=control.delta,
        serving_temperature=serving_temperature,
        control_temperature=control.best_temperature,
        serving_curves=control.curves,
        candidates=results,
    )
    why, more = explain(verdict)
    return replace(verdict, why=why, more_prompts=more)


class _Control:
    """The policies that candidates are tested against, prepared once for all of them."""

    def __init__(
        self,
        serving: Sequence[ScoredSamples],
        serving_temperature: float,
        n_now: int,
        n_max: int,
        baseline: Baseline | None,
        index_P: npt.NDArray[np.int64],
        rules: Rules,
    ) -> None:
        self._served = next(each for each in serving if each.temperature == serving_temperature)
        reference_PM = self._served.rewards_PM
        self._serving, self._n_now, self._rules = serving, n_now, rules
        self._index_P = index_P
        self._ns = range(1, max(n_max, n_now) + 1)
        self._to_unit = QuantileMap(reference_PM)
        self._to_sd: Scale = scale_at(reference_PM)
        self.conversations = int(index_P.max()) + 1
        self._bootstrap = Bootstrap(self.conversations, resamples=rules.resamples, seed=rules.seed)
        unit_CK = {each.temperature: self._curve(self._to_unit(each.rewards_PM), self._ns) for each in serving}
        self._sd_CK = {each.temperature: self._curve(self._to_sd(each.rewards_PM), self._ns) for each in serving}
        self.curves = {f"{t:g}": self._points(each_CK) for t, each_CK in self._sd_CK.items()}
        now_T = {t: each_CK[:, n_now - 1] for t, each_CK in unit_CK.items()}
        fewer = max(n_now - 1, 1)
        fewer_T = {t: each_CK[:, fewer - 1] for t, each_CK in unit_CK.items()}
        self._controls = {f"the old policy's best of {fewer} at temperature {t:g}": x for t, x in fewer_T.items()}
        self._base_sd_CK: list[Floats] = []
        if baseline is not None:
            self._base_sd_CK = self._base_curves(baseline)
            first = max(baseline.n - 1, 1)
            for each in baseline.samples:
                name = f"the base's best of {first} at temperature {each.temperature:g}, which every night must keep"
                self._controls[name] = self._curve(self._to_unit(each.rewards_PM), [first])[:, 0]
        self.best_temperature = max(now_T, key=lambda t: float(now_T[t].mean()))
        self._best_now_C = now_T[self.best_temperature]
        self.delta = float(self._best_now_C.mean()) - max(float(x.mean()) for x in fewer_T.values())

    def test(self, candidate: ScoredSamples, alpha: float, planned: int | None) -> CheckpointResult:
        """Test one checkpoint at every N′, with its guardrails and curves."""
        rewards_PM = candidate.rewards_PM
        first = max(self._n_now - 1, 1)
        ns = range(first, min(self._rules.least_n, first) - 1, -1)
        unit_CK = self._curve(self._to_unit(rewards_PM), ns)
        tests: list[NonInferiorityTest] = []
        for n, column_C in zip(ns, unit_CK.T, strict=True):
            may_pass = all(test.passed for test in tests)
            tests.append(self._test_n(n, column_C, alpha, planned, may_pass))
        chosen, tests = self._check_guardrails(candidate, tests)
        sd_CK = self._curve(self._to_sd(rewards_PM), range(1, min(len(self._ns), rewards_PM.shape[1]) + 1))
        old_sd = within_prompt_sd(self._served.rewards_PM)
        return CheckpointResult(
            checkpoint=candidate.policy,
            temperature=candidate.temperature,
            chosen=chosen,
            tests=tests,
            curve=self._points(sd_CK),
            sd_ratio=within_prompt_sd(rewards_PM) / old_sd,
            worth_at_serving=equivalent_n(sd_CK[:, :1], [self._sd_CK[self._served.temperature]], self._bootstrap),
            worth_at_best=equivalent_n(sd_CK[:, :1], list(self._sd_CK.values()), self._bootstrap),
            worth_at_base=equivalent_n(sd_CK[:, :1], self._base_sd_CK, self._bootstrap) if self._base_sd_CK else None,
        )

    def _base_curves(self, baseline: Baseline) -> list[Floats]:
        """Return the base's curves in the serving policy's unit, as far as the samples of every temperature reach."""
        ns = range(1, min(each.rewards_PM.shape[1] for each in baseline.samples) + 1)
        return [self._curve(self._to_sd(each.rewards_PM), ns) for each in baseline.samples]

    def _test_n(self, n: int, new_C: Floats, alpha: float, planned: int | None, may_pass: bool) -> NonInferiorityTest:
        xs = {name: new_C - control_C for name, control_C in self._controls.items()}
        processes = {name: eprocess.run(x, alpha=alpha, planned=planned) for name, x in xs.items()}
        # The control that was never beaten, or beaten last, decides the verdict, so the report shows it.
        hardest = max(processes, key=lambda name: (processes[name].crossed_at or math.inf, -processes[name].highest))
        against, process = xs[hardest], processes[hardest]
        (difference,) = self._bootstrap.estimates((new_C - self._best_now_C)[:, None])
        crossings = [each.crossed_at for each in processes.values()]
        crossed = [place for place in crossings if place is not None]
        return NonInferiorityTest(
            n=n,
            passed=may_pass and len(crossed) == len(crossings),
            difference=difference,
            gain_mean=float(against.mean()),
            gain_sd=float(against.std(ddof=1)) if len(against) > 1 else 0.0,
            against=hardest,
            wealth=process.final,
            highest_wealth=process.highest,
            crossed_at=max(crossed) if len(crossed) == len(crossings) else None,
            path=process.wealth.tolist(),
            fixed_sample_p=max(eprocess.fixed_sample_p(x) for x in xs.values()),
        )

    def _check_guardrails(
        self, new: ScoredSamples, tests: Sequence[NonInferiorityTest]
    ) -> tuple[int | None, list[NonInferiorityTest]]:
        """Return the smallest N′ that passed and whose guardrails hold, and the tests with the checked guardrails."""
        checked = list(tests)
        for place in (place for place in reversed(range(len(tests))) if tests[place].passed):
            n = tests[place].n
            sides = (self._n_now, new, n, self._index_P, self._bootstrap)
            judge = check_judge(self._serving, *sides)
            found = Comparison(self._served, *sides).check(self._rules.bounds)
            guardrails = (*found, *([judge] if judge is not None else []))
            checked[place] = replace(tests[place], guardrails=guardrails)
            if all(guardrail.passed for guardrail in guardrails):
                return n, checked
        return None, checked

    def _curve(self, rewards_PM: Floats, ns: Sequence[int]) -> Floats:
        return by_conversation(curves(rewards_PM, rewards_PM, ns), self._index_P)

    def _points(self, sd_CK: Floats) -> list[CurvePoint]:
        estimates = self._bootstrap.estimates(sd_CK)
        return [CurvePoint(n, each.mean, each.low, each.high) for n, each in enumerate(estimates, start=1)]


def _prompts(serving: Sequence[ScoredSamples]) -> int:
    return max((len(each.rewards_PM) for each in serving), default=0)


def _check(
    serving: Sequence[ScoredSamples],
    temperature: float,
    candidates: Sequence[ScoredSamples],
    baseline: Baseline | None,
    prompts: int,
    n_now: int,
) -> None:
    if n_now < 1:
        raise DataError(f"N = {n_now} is not a number of candidates")
    if temperature not in {each.temperature for each in serving}:
        raise DataError(f"no samples at the serving temperature {temperature:g}")
    if not candidates:
        raise DataError("there is no checkpoint to test")
    if prompts == 0:
        raise DataError("there are no held-out prompts to test on")
    for each in serving:
        each.check(f"the serving policy at temperature {each.temperature:g}", prompts=prompts, samples=max(n_now, 2))
    for each in candidates:
        each.check(f"checkpoint {each.policy}", prompts=prompts, samples=max(n_now - 1, 2))
    if baseline is not None:
        for each in baseline.samples:
            each.check(f"the base at temperature {each.temperature:g}", prompts=prompts, samples=max(baseline.n - 1, 2))
