"""``python -m distill sample`` and ``python -m distill evaluate``: draw answers, then measure what best-of-n is worth.

Heavy imports (torch, the embedded stack) are made by the command that needs them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import typer
from rich.console import Console
from rich.table import Table

from distill import settings as distill_settings
from distill.errors import DataError
from distill.evaluation.curve import Estimate
from distill.evaluation.prompts import Prompt, spread
from distill.evaluation.quality import Point, Quality, complete_prompts, measure, score_sets
from distill.evaluation.sample_store import SAMPLE_TIMEOUT_S, sample_file
from distill.evaluation.sample_store import adopt as adopt_samples
from distill.evaluation.samples import Sample, SamplePlan, SampleSet, read_samples
from distill.evaluation.sampling import sample_missing
from distill.exits import errors_in_words
from distill.progress import counting
from gateway.backend.pool import BackendPool
from gateway.settings import BackendSettings

_DEMO_PROMPTS = 12
_TEMPERATURES = [0.4, 0.7, 1.0]
_NS = [1, 2, 4, 8]

BackendKind = Literal["tgi", "vllm", "llamacpp"]

console = Console()


def sample(
    out: Annotated[Path, typer.Option(help="JSON lines to append to; what it holds is not drawn again.")],
    prompts: Annotated[
        Path | None, typer.Option(help='JSON lines {"kind", "prompt"}; unset: the shipped ones.')
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts, spread over their kinds.")] = 120,
    draws: Annotated[int, typer.Option(min=1, help="Answers to each prompt at each temperature.")] = 8,
    temperature: Annotated[list[float], typer.Option(min=0.01, help="May be given several times.")] = _TEMPERATURES,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    url: Annotated[str, typer.Option(help="Where to draw; unset: SmolLM2 on a llama.cpp server of its own.")] = "",
    kind: Annotated[BackendKind, typer.Option(help="What answers at the URL.")] = "tgi",
    concurrency: Annotated[int, typer.Option(min=1, help="Draws in flight.")] = 16,
    seed: Annotated[int, typer.Option(help="Seeds of all draws derive from it.")] = 0,
) -> None:
    """Draw several answers to each prompt at several temperatures."""
    with errors_in_words(), contextlib.ExitStack() as running:
        plan = SamplePlan(spread(_prompts(prompts), count), temperature, draws, max_tokens, seed)
        if not url:
            from gateway.embedded.llama import LlamaServer

            url, kind = running.enter_context(LlamaServer(slots=concurrency)).url, "llamacpp"
        settings = BackendSettings(kind=kind, urls=(url,), request_timeout_s=SAMPLE_TIMEOUT_S)
        progress = running.enter_context(counting(console))
        known = len(read_samples(out)) if out.exists() else 0
        bar = progress.add_task("drawing", total=plan.size, completed=known)
        asyncio.run(_sample(settings, plan, out, concurrency, lambda _: progress.advance(bar)))


def adopt(
    draws: Annotated[Path, typer.Option(help="JSON lines from `python -m distill sample`; they may still grow.")],
    adapter: Annotated[str, typer.Option(help="The adapter that drew them; unset: the base.")] = "",
    served_by: Annotated[BackendKind, typer.Option(help="What served it.")] = "llamacpp",
) -> None:
    """Take draws over into the nights' store, so that a night that measures this policy need not draw them.

    The next night draws some of them again, and uses them only if they come out the same.
    """
    with errors_in_words():
        settings = distill_settings.load()
        evaluation = settings.evaluation
        target = sample_file(
            evaluation.draws_dir,
            base=settings.training.model,
            served_by=served_by,
            adapter=adapter or None,
            max_tokens=evaluation.max_tokens,
        )
        added = adopt_samples(draws, target, max_tokens=evaluation.max_tokens)
        console.print(f"{added} draws taken over into {target}", highlight=False, soft_wrap=True)


def evaluate(
    draws: Annotated[Path, typer.Option(help="JSON lines from `python -m distill sample`.")],
    judge: Annotated[Path, typer.Option(help="Adapter of the reward model that judges; it must not have selected.")],
    model: Annotated[str, typer.Option(help="What both adapters sit on; unset: MiniLM from its wheel.")] = "",
    adapter: Annotated[Path | None, typer.Option(help="Adapter that selects; unset: the shipped one.")] = None,
    n: Annotated[list[int], typer.Option(min=1, help="Draws to choose from; may be given several times.")] = _NS,
    reference_temperature: Annotated[float, typer.Option(help="Where the standard units are taken.")] = 1.0,
    out: Annotated[
        Path | None, typer.Option(help="JSON result; unset: beside the draws, ending in .quality.json.")
    ] = None,
) -> None:
    """Measure what the best of n is worth, chosen by one reward model and judged by another."""
    with errors_in_words():
        drawn = complete_prompts(read_samples(draws))
        model, adapter = model or str(_minilm()), adapter or _shipped_adapter()
        if _digest(adapter) == _digest(judge):
            raise DataError("the judge is the selecting model: that proves nothing")
        rewards = [_score(model, each, drawn) for each in (adapter, judge)]
        quality = measure(drawn, *rewards, ns=sorted(n), reference_temperature=reference_temperature)
        console.print(_table(quality))
        target = out or draws.with_suffix(".quality.json")
        sources = {"draws": draws.name, "select_sha256": _digest(adapter), "judge_sha256": _digest(judge)}
        facts = sources | {"best_temperatures": quality.best_temperatures()} | asdict(quality)
        target.write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS) + b"\n")
        console.print(f"written to {target}")


async def _sample(
    settings: BackendSettings, plan: SamplePlan, out: Path, concurrency: int, on_sample: Callable[[Sample], None]
) -> None:
    async with BackendPool(settings) as backend:
        await sample_missing(backend, plan, out, concurrency=concurrency, on_sample=on_sample)


def _score(model: str, adapter: Path, drawn: dict[float, SampleSet]) -> dict[float, Any]:
    from gateway.reward.model import RewardModel

    loaded = RewardModel.load(model, adapter=adapter)
    with counting(console) as progress:
        total = sum(len(prompt) for prompts in drawn.values() for prompt in prompts)
        bar = progress.add_task(f"scoring with {adapter.name}", total=total)
        return score_sets(loaded, drawn, lambda scored: progress.advance(bar, scored))


def _prompts(path: Path | None) -> list[Prompt]:
    if path is None:
        from gateway.demo import prompts

        # The demo shows its own; a measurement on other prompts cannot have been arranged for it.
        return [Prompt.of_text(prompt.prompt, prompt.kind) for prompt in prompts.load()[_DEMO_PROMPTS:]]
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [Prompt.of_text(str(row["prompt"]), str(row["kind"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path} is not JSON lines of {{"kind", "prompt"}}: {type(error).__name__}') from error


def _minilm() -> Path:
    from gateway.embedded import weights

    return weights.minilm_folder()


def _shipped_adapter() -> Path:
    from gateway.embedded import weights

    return weights.reward_adapter_folder()


def _digest(adapter: Path) -> str:
    try:
        return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"there is no adapter in {adapter}") from error


def _table(quality: Quality) -> Table:
    at = f"temperature {quality.reference_temperature:g}"
    table = Table(
        title=f"Best of n: {quality.prompts} prompts × {quality.draws} draws",
        caption=f"SD: pooled within-prompt standard deviation at {at}; 0 is the mean of one draw there. "
        "Brackets: 95 % bootstrap over prompts. Correlation of both rewards within a prompt: "
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
