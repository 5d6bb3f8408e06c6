"""``python -m distill evaluate``: measure by a file of samples how much the best of n gains."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from distill.errors import DataError
from distill.evaluation.curve import Estimate
from distill.evaluation.quality import Point, Quality, complete_prompts, measure, score_sets
from distill.evaluation.samples import SampleSet, read_samples
from distill.exits import exit_on_error
from distill.progress import counting
from gateway.embedded.weights import minilm_folder, reward_adapter_folder

_NS = [1, 2, 4, 8]

console = Console()


def evaluate(
    draws: Annotated[Path, typer.Option(help="JSON lines from `python -m distill sample`.")],
    judge: Annotated[Path, typer.Option(help="Adapter of the reward model that judges; not the one that selects.")],
    model: Annotated[str, typer.Option(help="Backbone of both adapters; unset: MiniLM from its wheel.")] = "",
    adapter: Annotated[Path | None, typer.Option(help="Adapter that selects; unset: the shipped one.")] = None,
    n: Annotated[list[int], typer.Option(min=1, help="Samples to choose from; may be repeated.")] = _NS,
    reference_temperature: Annotated[
        float, typer.Option(help="Temperature whose standard deviation is the unit.")
    ] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="JSON result; unset: the file of samples, ending in .quality.json.")
    ] = None,
) -> None:
    """Measure how much the best of n gains, selected by one reward model and judged by another."""
    with exit_on_error():
        drawn = complete_prompts(read_samples(draws))
        model, adapter = model or str(minilm_folder()), adapter or reward_adapter_folder()
        digests = {"select_sha256": _digest(adapter), "judge_sha256": _digest(judge)}
        if digests["select_sha256"] == digests["judge_sha256"]:
            raise DataError("the judge is the selecting model: that proves nothing")
        rewards = [_score(model, each, drawn) for each in (adapter, judge)]
        quality = measure(drawn, *rewards, ns=sorted(n), reference_temperature=reference_temperature)
        console.print(_table(quality))
        target = out or draws.with_suffix(".quality.json")
        facts = {"draws": draws.name} | digests | {"best_temperatures": quality.best_temperatures()} | asdict(quality)
        target.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")
        console.print(f"written to {target}")


def _score(model: str, adapter: Path, drawn: dict[float, SampleSet]) -> dict[float, Any]:
    from gateway.reward.model import RewardModel

    loaded = RewardModel.load(model, adapter=adapter)
    with counting(console) as progress:
        total = sum(len(prompt) for prompts in drawn.values() for prompt in prompts)
        bar = progress.add_task(f"scoring with {adapter.name}", total=total)
        return score_sets(loaded, drawn, lambda scored: progress.advance(bar, scored))


def _digest(adapter: Path) -> str:
    try:
        return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"there is no adapter in {adapter}") from error


def _table(quality: Quality) -> Table:
    at = f"temperature {quality.reference_temperature:g}"
    table = Table(
        title=f"Best of n: {quality.prompts} prompts × {quality.draws} samples",
        caption=f"SD: pooled within-prompt standard deviation at {at}; 0 is the mean of one sample there. "
        "Brackets: 95 % bootstrap interval over prompts. Correlation of both rewards within a prompt: "
        + ", ".join(f"{value:.2f} at {t:g}" for t, value in quality.correlation.items()),
    )
    columns = ("temp.", "n", "select, raw", "judge, raw", "select, SD", "judge, SD", "select gain", "judge gain")
    for name in (*columns, "judge behind best", "tokens"):
        table.add_column(name, justify="right")
    best = quality.best_temperatures()
    for point in quality.points:
        style = "bold" if best[point.n] == point.temperature else ""
        table.add_row(*_cells(point), style=style, end_section=point.n == max(best))
    return table


def _cells(point: Point) -> list[str]:
    gains = (point.select_gain, point.judge_gain, point.judge_behind)
    return [
        f"{point.temperature:g}",
        str(point.n),
        f"{point.select_raw.mean:.3f}",
        f"{point.judge_raw.mean:.3f}",
        _interval(point.select),
        _interval(point.judge),
        *(_interval(gain) if gain.low != gain.high else "" for gain in gains),
        f"{point.completion_tokens.mean:.0f}",
    ]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:+.2f} [{estimate.low:+.2f}, {estimate.high:+.2f}]"
