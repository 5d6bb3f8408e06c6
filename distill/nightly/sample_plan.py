"""The sample plan of a night: the policies that are measured, on which prompts, at which temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.dataset.files import read_held_out
from distill.evaluation.prompts import Prompt
from distill.evaluation.samples import SamplePlan
from distill.nightly.checkpoint_adapters import serving_adapter
from distill.nightly.context import Night
from distill.nightly.results import DrawResult
from distill.nightly.served_model import sample_file
from distill.report.facts import Side
from distill.settings import EvaluationSettings

DEFAULT_TEMPERATURE = 1.0
"""The temperature of TGI and vLLM for a request in which neither caller nor policy sets one."""


@dataclass(frozen=True)
class MeasuredPolicy:
    """A policy whose samples are measured: the serving one, a checkpoint, or the base.

    ``name`` is its name in the report, ``path`` the file of its samples.
    """

    side: Side
    name: str
    path: Path
    plan: SamplePlan


def compared_policies(night: Night, candidates: Mapping[str, str], behaviour: str) -> list[MeasuredPolicy]:
    """Return the policies that the gate compares, the serving one first; the same ones in every attempt at a night.

    Args:
        night: The night.
        candidates: Each checkpoint's name as an adapter.
        behaviour: The id of the served model, from ``served_model.recognise``.
    """
    settings = night.settings.evaluation
    old = night.serving.adapter
    old_temperatures = temperatures(settings, night.serving.default_temperature)
    new_temperatures = settings.candidate_temperatures or (serving_temperature(night),)
    return [
        _policy(night, "old", old or "base", old, old_temperatures, settings.draws_dir, behaviour),
        *(
            _policy(night, "new", checkpoint, adapter, new_temperatures, night.run.path / "draws", behaviour)
            for checkpoint, adapter in candidates.items()
        ),
    ]


def base_policy(night: Night, behaviour: str) -> list[MeasuredPolicy]:
    """Return the base, if an adapter serves: the gate also compares with the base as it was before the first night."""
    serving = serving_adapter(night)
    if serving is None:
        return []
    settings = night.settings.evaluation
    base_temperatures = temperatures(settings, night.serving.default_temperature)
    least = serving.manifest.n_base
    return [_policy(night, "old", "base", None, base_temperatures, settings.draws_dir, behaviour, least_samples=least)]


def drawn_policies(night: Night, drawn: DrawResult) -> list[MeasuredPolicy]:
    """Return the compared policies after drawing: on all prompts but those that the backend refused."""
    return _without_refused(compared_policies(night, drawn.candidates, drawn.behaviour), drawn)


def drawn_base(night: Night, drawn: DrawResult) -> list[MeasuredPolicy]:
    """Return the base after drawing, as ``drawn_policies`` does; empty if no adapter serves."""
    return _without_refused(base_policy(night, drawn.behaviour), drawn)


def held_out_prompts(night: Night) -> list[Prompt]:
    """Return the prompts that are measured: the first by hash, so that most of them stay from night to night."""
    prompts = read_held_out(night.run.held_out_file)[: night.settings.evaluation.prompts]
    return [Prompt(prompt.messages) for prompt in prompts]


def serving_temperature(night: Night) -> float:
    """Return the temperature of requests that set none."""
    temperature = night.serving.default_temperature
    return DEFAULT_TEMPERATURE if temperature is None else temperature


def temperatures(settings: EvaluationSettings, default: float | None) -> list[float]:
    """Return the temperatures at which the serving policy is sampled: those of the settings, and its own default."""
    return sorted({*settings.temperatures, DEFAULT_TEMPERATURE if default is None else default})


def _policy(
    night: Night,
    side: Side,
    name: str,
    adapter: str | None,
    temperatures: Sequence[float],
    folder: Path,
    behaviour: str,
    *,
    least_samples: int = 0,
) -> MeasuredPolicy:
    settings = night.settings.evaluation
    path = sample_file(folder, night.settings, night.gateway, adapter, behaviour)
    count = max(settings.draws, night.serving.n, least_samples)
    plan = SamplePlan(held_out_prompts(night), temperatures, count, settings.max_tokens, adapter=adapter)
    return MeasuredPolicy(side, name, path, plan)


def _without_refused(policies: Sequence[MeasuredPolicy], drawn: DrawResult) -> list[MeasuredPolicy]:
    refused = set(drawn.refused)
    return [
        replace(each, plan=replace(each.plan, prompts=[p for p in each.plan.prompts if p.key not in refused]))
        for each in policies
    ]
