"""``python -m distill sample``: draw samples into a file."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill.errors import DataError
from distill.evaluation.prompts import Prompt, spread
from distill.evaluation.sample_store import SAMPLE_TIMEOUT_S, count_missing
from distill.evaluation.samples import Sample, SamplePlan
from distill.evaluation.sampling import sample_missing
from distill.exits import exit_on_error
from distill.progress import counting
from gateway.backend.pool import BackendPool
from gateway.settings import BackendKind, BackendSettings

_DEMO_PROMPTS = 12
_TEMPERATURES = [0.4, 0.7, 1.0]

console = Console()


def sample(
    out: Annotated[Path, typer.Option(help="JSON lines to append to; samples that it holds are not drawn again.")],
    prompts: Annotated[
        Path | None, typer.Option(help='JSON lines {"kind", "prompt"}; unset: the shipped ones.')
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts, spread over their kinds.")] = 120,
    draws: Annotated[int, typer.Option(min=1, help="Samples of each prompt at each temperature.")] = 8,
    temperature: Annotated[list[float], typer.Option(min=0.01, help="May be repeated.")] = _TEMPERATURES,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest sample.")] = 128,
    url: Annotated[str, typer.Option(help="Backend; unset: SmolLM2 on a llama.cpp server that is started here.")] = "",
    kind: Annotated[BackendKind, typer.Option(help="Kind of the backend at the URL.")] = "tgi",
    concurrency: Annotated[int, typer.Option(min=1, help="Samples drawn at the same time.")] = 16,
    seed: Annotated[int, typer.Option(help="All samples' seeds derive from it.")] = 0,
) -> None:
    """Draw several samples of each prompt at several temperatures."""
    with exit_on_error(), contextlib.ExitStack() as running:
        plan = SamplePlan(spread(_read_prompts(prompts), count), temperature, draws, max_tokens, seed)
        if not url:
            from gateway.embedded.llama import LlamaServer  # loads llama.cpp

            url, kind = running.enter_context(LlamaServer(slots=concurrency)).url, "llamacpp"
        settings = BackendSettings(kind=kind, urls=(url,), request_timeout_s=SAMPLE_TIMEOUT_S)
        progress = running.enter_context(counting(console))
        bar = progress.add_task("drawing", total=plan.size, completed=plan.size - count_missing(plan, out))
        asyncio.run(_sample(settings, plan, out, concurrency, lambda _: progress.advance(bar)))


async def _sample(
    settings: BackendSettings, plan: SamplePlan, out: Path, concurrency: int, on_sample: Callable[[Sample], None]
) -> None:
    async with BackendPool(settings) as backend:
        await sample_missing(backend, plan, out, concurrency=concurrency, on_sample=on_sample)


def _read_prompts(path: Path | None) -> list[Prompt]:
    if path is None:
        from gateway.demo import prompts

        # The demo shows the first prompts; a measurement on the others cannot have been arranged for it.
        return [Prompt.of_text(prompt.prompt, prompt.kind) for prompt in prompts.load()[_DEMO_PROMPTS:]]
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [Prompt.of_text(str(row["prompt"]), str(row["kind"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path} is not JSON lines of {{"kind", "prompt"}}: {type(error).__name__}') from error
