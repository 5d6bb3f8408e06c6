"""May N shrink, and how far? Held-out evidence in, a verdict out. Pure: no I/O.

**The claim.** D = best of N′ of the new policy − best of N of the old one; H0: E[D] ≤ −δ, where δ = best of N − best of
N − 1 of the old: the worth of one sample. D + δ is then, prompt by prompt, x = best of N′ (new) − best of N − 1 (old):
δ never has to be estimated apart, and the test is exact in it. At N = 1 nothing can shrink; there x compares one draw
with one draw, and a better policy may take the old one's place.

**The scale.** Rewards become mid-ranks among the serving policy's own at its serving temperature: in [0, 1] whatever
the reward model's scale, so x lies in [−1, 1]. δ, D and x are on that scale; the curves are in standard units (0: the
mean of one serving draw, 1: pooled within-prompt SD).

**The control** is the old policy at its best temperature. Which that is is not known, so the new policy has to win
against **every** temperature drawn: H0 "not better than the best" is the union of "not better than t", and a test that
needs all of them errs only if the one for the true best does (intersection-union). Nothing is picked on the data, so
nothing has to be corrected. Reported means take the temperature that looks best: the winner's curse is the old policy's
gain, not ours.

**The anchor.** One sample may be lost a night, and many nights lose many. So where an adapter serves already, x is also
asked for against the base as it served before the first night: best of N₀ − 1, at every temperature drawn of it. By
the same intersection-union nothing has to be corrected, and every night keeps the quality of best-of-N₀ but for one
sample.

**Several N′.** Tested from N − 1 downwards, each at the full level, and nothing after the first failure: the first true
null reached is passed with chance ≤ α at most (fixed sequence), so all N′ together err with α. The smallest N′ passed
whose guards hold is chosen. N′ = N is not tested: passing at N − 1 says the new policy is better at the same n, so a
policy that fails there has no claim to take over at N, where it could be worse by a whole sample.

**Several checkpoints** (or temperatures of one) share α equally: each wealth must reach (their number)/α. The other
valid way, picking one on a quarter of the prompts and testing it on the rest, promotes less: of 600 simulated nights
(8 → 4, 711 prompts, three checkpoints) 62 % against 79 % when all three are at D = 0, 48 % against 59 % when one is and
the others are at −δ/2 and −δ. It needs fewer draws, though; where those are dear, pick one checkpoint on *training*
prompts and hand in that one.

**Several nights.** A new night has a new checkpoint, so its test is a new one at α: of many nights in which nothing was
learned, a share of at most α shrinks N by mistake. Live rewards are the second line (promotion's guard). Within one
evaluation the wealth may be looked at after any prompt, given the number planned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from distill.errors import DataError
from distill.evaluation import eprocess
from distill.evaluation.curve import Floats, curves, within_prompt_sd
from distill.evaluation.drawn import Candidate, Drawn
from distill.evaluation.equivalent import equivalent_n
from distill.evaluation.guards import Bounds, Comparison, judge_agrees
from distill.evaluation.quality import Scale, scale_at
from distill.evaluation.resample import Bootstrap, by_conversation, conversation_index
from distill.evaluation.verdict import CurvePoint, Judged, Trial, Verdict, explain


@dataclass(frozen=True, slots=True)
class Rules:
    """What the gate asks."""

    alpha: float = 0.05
    """Chance of letting N shrink although E[D] ≤ −δ, over all checkpoints and N′ of a night."""
    bounds: Bounds = field(default_factory=Bounds)
    """Of the guards."""
    least_n: int = 1
    """Smallest N′ tested."""
    resamples: int = 2000
    """Bootstrap samples."""
    seed: int = 0
    """Of the bootstrap."""


DEFAULTS = Rules()


@dataclass(frozen=True, slots=True, eq=False)
class Anchor:
    """What no night may lose: the base's best of ``n``, the N at which it served before the first night."""

    n: int
    drawn: Mapping[float, Drawn]
    """By temperature, on the same prompts."""


class QuantileMap:
    """Mid-rank of a reward among reference rewards: (those below + half of those equal) / all."""

    def __init__(self, reference: Floats) -> None:
        self._sorted = np.sort(reference, axis=None)

    def __call__(self, rewards: Floats) -> Floats:
        """In [0, 1], same shape."""
        below, upto = (np.searchsorted(self._sorted, rewards, side=side) for side in ("left", "right"))
        ranks: Floats = (below + upto) / (2 * self._sorted.size)
        return ranks


def decide(
    serving: Mapping[float, Drawn],
    serving_temperature: float,
    candidates: Sequence[Candidate],
    *,
    n_now: int,
    n_max: int | None = None,
    anchor: Anchor | None = None,
    conversations: Sequence[str] | None = None,
    planned: int | None = None,
    rules: Rules = DEFAULTS,
) -> Verdict:
    """The verdict on a night's checkpoints.

    Args:
        serving: The serving policy's draws by temperature, on the same prompts in the same order.
        serving_temperature: The one it serves at.
        candidates: The night's checkpoints.
        n_now: Draws the policy chooses from now.
        n_max: Where the curves end; unset: at the draws there are.
        anchor: The base before the first night; unset: the base still serves.
        conversations: Each prompt's conversation, in an order that does not depend on rewards; unset: all differ.
        planned: Conversations there will be, for a look at the first part; unset: these.
        rules: What is asked.

    Raises:
        DataError: Draws are missing, too few for N, or rewards are no numbers; says which.
    """
    prompts = len(conversations) if conversations is not None else _prompts(serving)
    _check(serving, serving_temperature, candidates, anchor, prompts, n_now)
    names = conversations if conversations is not None else [str(place) for place in range(prompts)]
    draws = min(drawn.rewards_PM.shape[1] for drawn in (*serving.values(), *(each.drawn for each in candidates)))
    n_max = min(n_max or draws, draws)
    court = _Court(serving, serving_temperature, n_now, n_max, anchor, conversation_index(names), rules)
    alpha = rules.alpha / len(candidates)
    judged = [court.judge(candidate, alpha, planned) for candidate in candidates]
    allowed = [(trial, each) for each in judged for trial in each.trials if each.chosen == trial.n]
    trial, winner = min(allowed, key=lambda pair: (pair[0].n, -pair[0].difference.mean), default=(None, None))
    verdict = Verdict(
        promote=winner is not None,
        n_now=n_now,
        n_base=anchor.n if anchor is not None else None,
        n_new=trial.n if trial is not None else n_now,
        checkpoint=winner.checkpoint if winner is not None else None,
        temperature=winner.temperature if winner is not None else None,
        why="",
        more_prompts=None,
        prompts=prompts,
        conversations=court.conversations,
        alpha=rules.alpha,
        threshold=1 / alpha,
        delta=court.delta,
        serving_temperature=serving_temperature,
        control_temperature=court.control_temperature,
        serving_curves=court.curves,
        candidates=judged,
    )
    why, more = explain(verdict)
    return replace(verdict, why=why, more_prompts=more)


class _Court:
    """The serving policy's side, prepared once for all candidates."""

    def __init__(
        self,
        serving: Mapping[float, Drawn],
        serving_temperature: float,
        n_now: int,
        n_max: int,
        anchor: Anchor | None,
        index_P: npt.NDArray[np.int64],
        rules: Rules,
    ) -> None:
        reference_PM = serving[serving_temperature].rewards_PM
        self._serving, self._temperature, self._n_now, self._rules = serving, serving_temperature, n_now, rules
        self._index_P = index_P
        self._ns = range(1, max(n_max, n_now) + 1)
        self._to_unit = QuantileMap(reference_PM)
        self._to_sd: Scale = scale_at(reference_PM)
        self.conversations = int(index_P.max()) + 1
        self._bootstrap = Bootstrap(self.conversations, resamples=rules.resamples, seed=rules.seed)
        self._unit_CK = {t: self._curve(self._to_unit(drawn.rewards_PM), self._ns) for t, drawn in serving.items()}
        self._sd_CK = {t: self._curve(self._to_sd(drawn.rewards_PM), self._ns) for t, drawn in serving.items()}
        self.curves = {f"{t:g}": self._points(each_CK) for t, each_CK in self._sd_CK.items()}
        self._now_T = {t: each_CK[:, n_now - 1] for t, each_CK in self._unit_CK.items()}
        fewer = max(n_now - 1, 1)
        self._fewer_T = {t: each_CK[:, fewer - 1] for t, each_CK in self._unit_CK.items()}
        self._hurdles = {f"the old policy's best of {fewer} at temperature {t:g}": x for t, x in self._fewer_T.items()}
        self._base_sd_CK: list[Floats] = []
        if anchor is not None:
            self._base_sd_CK = self._beside(anchor)
            first = max(anchor.n - 1, 1)
            self._hurdles |= {
                f"the base's best of {first} at temperature {t:g}, which no night may lose": self._curve(
                    self._to_unit(drawn.rewards_PM), [first]
                )[:, 0]
                for t, drawn in anchor.drawn.items()
            }
        self.control_temperature = max(self._now_T, key=lambda t: float(self._now_T[t].mean()))
        best_now, best_fewer = (max(float(x.mean()) for x in side.values()) for side in (self._now_T, self._fewer_T))
        self.delta = best_now - best_fewer

    def judge(self, candidate: Candidate, alpha: float, planned: int | None) -> Judged:
        """All that is known of one checkpoint."""
        rewards_PM = candidate.drawn.rewards_PM
        first = max(self._n_now - 1, 1)
        ns = range(first, min(self._rules.least_n, first) - 1, -1)
        unit_CK = self._curve(self._to_unit(rewards_PM), ns)
        trials: list[Trial] = []
        for n, column_C in zip(ns, unit_CK.T, strict=True):
            in_order = all(trial.passed for trial in trials)
            trials.append(self._trial(n, column_C, alpha, planned, in_order))
        chosen, trials = self._guarded(candidate.drawn, trials)
        sd_CK = self._curve(self._to_sd(rewards_PM), range(1, min(len(self._ns), rewards_PM.shape[1]) + 1))
        old_sd = within_prompt_sd(self._serving[self._temperature].rewards_PM)
        return Judged(
            checkpoint=candidate.checkpoint,
            temperature=candidate.temperature,
            chosen=chosen,
            trials=trials,
            curve=self._points(sd_CK),
            sd_ratio=within_prompt_sd(rewards_PM) / old_sd,
            worth_at_serving=equivalent_n(sd_CK[:, :1], [self._sd_CK[self._temperature]], self._bootstrap),
            worth_at_best=equivalent_n(sd_CK[:, :1], list(self._sd_CK.values()), self._bootstrap),
            worth_at_base=equivalent_n(sd_CK[:, :1], self._base_sd_CK, self._bootstrap) if self._base_sd_CK else None,
        )

    def _beside(self, anchor: Anchor) -> list[Floats]:
        """The base's curves in the serving policy's unit, as far as every temperature's draws reach."""
        ns = range(1, min(drawn.rewards_PM.shape[1] for drawn in anchor.drawn.values()) + 1)
        return [self._curve(self._to_sd(drawn.rewards_PM), ns) for drawn in anchor.drawn.values()]

    def _trial(self, n: int, new_C: Floats, alpha: float, planned: int | None, in_order: bool) -> Trial:
        xs = {name: new_C - hurdle_C for name, hurdle_C in self._hurdles.items()}
        processes = {name: eprocess.run(x, alpha=alpha, planned=planned) for name, x in xs.items()}
        # The one that never crossed, or crossed last: the verdict waits for it, so it is what the report shows.
        hardest = max(processes, key=lambda name: (processes[name].crossed_at or math.inf, -processes[name].highest))
        against, process = xs[hardest], processes[hardest]
        (difference,) = self._bootstrap.estimates((new_C - self._now_T[self.control_temperature])[:, None])
        crossings = [each.crossed_at for each in processes.values()]
        crossed = [place for place in crossings if place is not None]
        return Trial(
            n=n,
            passed=in_order and len(crossed) == len(crossings),
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

    def _guarded(self, new: Drawn, trials: Sequence[Trial]) -> tuple[int | None, list[Trial]]:
        """The smallest N′ that passed and whose guards hold; the trials with the guards that were looked at."""
        looked_at = list(trials)
        for place in (place for place in reversed(range(len(trials))) if trials[place].passed):
            n = trials[place].n
            sides = (self._n_now, new, n, self._index_P, self._bootstrap)
            judge = judge_agrees(self._serving, *sides)
            found = Comparison(self._serving[self._temperature], *sides).check(self._rules.bounds)
            guards = (*found, *([judge] if judge is not None else []))
            looked_at[place] = replace(trials[place], guards=guards)
            if all(guard.passed for guard in guards):
                return n, looked_at
        return None, looked_at

    def _curve(self, rewards_PM: Floats, ns: Sequence[int]) -> Floats:
        return by_conversation(curves(rewards_PM, rewards_PM, ns), self._index_P)

    def _points(self, sd_CK: Floats) -> list[CurvePoint]:
        estimates = self._bootstrap.estimates(sd_CK)
        return [CurvePoint(n, each.mean, each.low, each.high) for n, each in enumerate(estimates, start=1)]


def _prompts(serving: Mapping[float, Drawn]) -> int:
    return max((len(drawn.rewards_PM) for drawn in serving.values()), default=0)


def _check(
    serving: Mapping[float, Drawn],
    temperature: float,
    candidates: Sequence[Candidate],
    anchor: Anchor | None,
    prompts: int,
    n_now: int,
) -> None:
    if n_now < 1:
        raise DataError(f"N = {n_now} is no number of draws")
    if temperature not in serving:
        raise DataError(f"nothing was drawn at the serving temperature {temperature:g}")
    if not candidates:
        raise DataError("there is no checkpoint to judge")
    if prompts == 0:
        raise DataError("there are no held-out prompts to judge on")
    for t, drawn in serving.items():
        drawn.check(f"the serving policy at temperature {t:g}", prompts=prompts, draws=max(n_now, 2))
    for each in candidates:
        each.drawn.check(f"checkpoint {each.checkpoint}", prompts=prompts, draws=max(n_now - 1, 2))
    if anchor is not None:
        for t, drawn in anchor.drawn.items():
            drawn.check(f"the base at temperature {t:g}", prompts=prompts, draws=max(anchor.n - 1, 2))
