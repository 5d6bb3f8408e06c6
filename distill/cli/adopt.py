"""``python -m distill adopt``: use samples of ``python -m distill sample`` in the nights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill import settings as distill_settings
from distill.evaluation.sample_store import adopt as adopt_samples
from distill.evaluation.sample_store import sample_file
from distill.exits import exit_on_error
from gateway.settings import BackendKind

console = Console()


def adopt(
    draws: Annotated[Path, typer.Option(help="JSON lines from `python -m distill sample`; they may still grow.")],
    adapter: Annotated[str, typer.Option(help="The adapter that was sampled; unset: the base.")] = "",
    served_by: Annotated[BackendKind, typer.Option(help="The kind of backend that served it.")] = "llamacpp",
) -> None:
    """Add samples to the nights' store, so that a night that measures this policy need not draw them.

    The next night draws some of them again, and uses the file only if most of these come out the same.
    """
    with exit_on_error():
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
        console.print(f"{added} samples added to {target}", highlight=False, soft_wrap=True)
