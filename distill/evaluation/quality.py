"""Measure the quality of best-of-n: one reward model selects, and another, which selected nothing, judges.

A model that judges its own choices would count the noise that it selects as an improvement.
Shapes: P prompts, M samples of each at one temperature, K values of n.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from distill.errors import DataError
from distill.evaluation.curve import Estimate, Floats, curves, within_prompt_correlation, within_prompt_sd
from distill.evaluation.resample import Bootstrap
from distill.evaluation.samples import Sample, SampleSet

if TYPE_CHECKING:
    from gateway.reward.model import RewardModel  # imports torch

_BATCH = 32


@dataclass(frozen=True, slots=True)
class Scale:
    """Convert a model's raw rewards to standard ones: ``(raw − origin) / sd``.

    ``origin`` is the mean reward of one sample and ``sd`` the pooled within-prompt standard deviation, both at the
    reference temperature. So 0 is the mean of one sample there, and 1 the spread of samples of one prompt.
    """

    origin: float
    sd: float

    def __call__(self, raw_PM: Floats) -> Floats:
        return (raw_PM - self.origin) / self.sd


@dataclass(frozen=True, slots=True)
class Point:
    """Best of n at one temperature. Rewards and gains are standard; ``…_raw`` are the models' own logits.

    Gains are over n = 1 at the same temperature. ``judge_behind`` is the judge's reward minus that of the best
    temperature at this n (0 for the best itself). Intervals are paired by prompt.
    """

    temperature: float
    n: int
    select: Estimate
    judge: Estimate
    select_gain: Estimate
    judge_gain: Estimate
    judge_behind: Estimate
    select_raw: Estimate
    judge_raw: Estimate
    completion_tokens: Estimate


@dataclass(frozen=True, slots=True)
class Quality:
    """Every point, with the facts needed to read them."""

    prompts: int
    draws: int
    """Samples of each prompt at each temperature; the key in the file of results."""
    reference_temperature: float
    select_scale: Scale
    judge_scale: Scale
    correlation: dict[float, float]
    """Within-prompt correlation of the two models' rewards, by temperature."""
    points: list[Point]

    def best_temperatures(self) -> dict[int, float]:
        """Return for each n the temperature that the judge rates highest."""
        by_n: dict[int, list[Point]] = defaultdict(list)
        for point in self.points:
            by_n[point.n].append(point)
        return {n: max(points, key=lambda point: point.judge.mean).temperature for n, points in by_n.items()}


def complete_prompts(samples: Sequence[Sample]) -> dict[float, SampleSet]:
    """Return samples by temperature, then prompt, of the prompts that have all samples at every temperature.

    The prompts are in the same order at each temperature.

    Raises:
        DataError: No prompt is complete.
    """
    cells: dict[str, dict[float, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        cells[sample.prompt.key][sample.temperature].append(sample)
    temperatures = sorted({sample.temperature for sample in samples})
    most = max((len(cell) for prompt in cells.values() for cell in prompt.values()), default=0)
    complete = [prompt for prompt in cells.values() if all(len(prompt[t]) == most for t in temperatures)]
    if not complete:
        raise DataError("no prompt has all its samples at every temperature: let `python -m distill sample` go on")
    return {t: [sorted(prompt[t], key=lambda sample: sample.index) for prompt in complete] for t in temperatures}


def score_sets(
    model: RewardModel, samples: dict[float, SampleSet], on_scored: Callable[[int], None] = lambda _: None
) -> dict[float, Floats]:
    """Return the rewards of every sample, shape (P, M) for each temperature. Equal answers to a prompt are scored once.

    Args:
        model: A loaded reward model.
        samples: From ``complete_prompts``.
        on_scored: Called with the number of samples that each batch scored.
    """
    every = [sample for prompts in samples.values() for prompt in prompts for sample in prompt]
    waiting: dict[tuple[str, str], int] = defaultdict(int)
    prompts_by_key = {sample.prompt.key: sample.prompt for sample in every}
    for sample in every:
        waiting[sample.prompt.key, sample.text] += 1
    # Longest first: texts of similar length share a batch, which saves padding and never underestimates the time left.
    texts = sorted(waiting, key=lambda text: len(text[0]) + len(text[1]), reverse=True)
    rewards: dict[tuple[str, str], float] = {}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        pairs = [model.encode(prompts_by_key[key].messages, answer) for key, answer in batch]
        rewards.update(zip(batch, model.score(pairs), strict=True))
        on_scored(sum(waiting[text] for text in batch))
    return {
        t: np.array([[rewards[sample.prompt.key, sample.text] for sample in prompt] for prompt in prompts])
        for t, prompts in samples.items()
    }


def measure(
    samples: dict[float, SampleSet],
    select: dict[float, Floats],
    judge: dict[float, Floats],
    *,
    ns: Sequence[int],
    reference_temperature: float,
    seed: int = 0,
) -> Quality:
    """Return the curves of both rewards at every temperature and n.

    Args:
        samples: From ``complete_prompts``.
        select: Rewards of the model that selects, raw, from ``score_sets``.
        judge: Rewards of the model that judges, raw.
        ns: Numbers of samples to choose from, each at most M; gains are measured against the first.
        reference_temperature: Temperature that defines the standard units.
        seed: Seed of the bootstrap.
    """
    if reference_temperature not in samples:
        raise DataError(f"no samples at the reference temperature {reference_temperature:g}")
    prompt_count, sample_count = select[reference_temperature].shape
    if max(ns) > sample_count:
        raise DataError(
            f"n = {max(ns)} is more than the {sample_count} samples of each prompt: that would be extrapolation"
        )
    to_select, to_judge = (scale_at(rewards[reference_temperature]) for rewards in (select, judge))
    judge_PK = {t: curves(select[t], to_judge(judge[t]), ns) for t in samples}
    best_PK = _best_columns(list(judge_PK.values()))
    bootstrap = Bootstrap(prompt_count, seed=seed)
    points: list[Point] = []
    for t, prompts in samples.items():
        selected = curves(select[t], to_select(select[t]), ns)
        tokens_PM = np.array([[sample.completion_tokens for sample in prompt] for prompt in prompts], dtype=np.float64)
        columns_PK = {
            "select": selected,
            "judge": judge_PK[t],
            "select_gain": selected - selected[:, :1],
            "judge_gain": judge_PK[t] - judge_PK[t][:, :1],
            "judge_behind": judge_PK[t] - best_PK,
            "select_raw": curves(select[t], select[t], ns),
            "judge_raw": curves(select[t], judge[t], ns),
            "completion_tokens": curves(select[t], tokens_PM, ns),
        }
        estimates = {name: bootstrap.estimates(values) for name, values in columns_PK.items()}
        points += [Point(t, n, **{name: each[k] for name, each in estimates.items()}) for k, n in enumerate(ns)]
    return Quality(
        prompts=prompt_count,
        draws=sample_count,
        reference_temperature=reference_temperature,
        select_scale=to_select,
        judge_scale=to_judge,
        correlation={t: within_prompt_correlation(select[t], judge[t]) for t in samples},
        points=points,
    )


def scale_at(raw_PM: Floats) -> Scale:
    """Return the scale with these rewards as its reference.

    Raises:
        DataError: Rewards do not differ within any prompt.
    """
    sd = within_prompt_sd(raw_PM)
    if sd == 0:
        raise DataError("a reward model gave every sample of a prompt the same reward: nothing can be compared")
    return Scale(float(raw_PM.mean()), sd)


def _best_columns(values_PK: list[Floats]) -> Floats:
    """Take each column from the array with the highest mean in that column."""
    values_TPK = np.stack(values_PK)
    best_K = values_TPK.mean(axis=1).argmax(axis=0)
    return values_TPK[best_K, :, np.arange(values_TPK.shape[2])].T
