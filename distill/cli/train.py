"""``python -m distill train``: train checkpoints on a file of curated examples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill import settings as distill_settings
from distill.dataset.files import read_examples
from distill.exits import exit_on_error
from distill.progress import LOSS, counting

if TYPE_CHECKING:
    from distill.training.callbacks import Step
    from distill.training.train import Trained

Examples = Annotated[Path, typer.Argument(help="Examples file, as `python -m distill curate` writes it.")]
Out = Annotated[Path, typer.Option(help="Folder of this training: checkpoints, TensorBoard, trained.json.")]
Replay = Annotated[list[Path] | None, typer.Option(help="Examples file of an earlier night; may be repeated.")]
Restart = Annotated[
    bool, typer.Option("--restart", help="Delete the folder's content; else training continues from it.")
]


def train(examples: Examples, out: Out, replay: Replay = None, restart: Restart = False) -> None:
    """Train the base model on winners, as DISTILL_TRAINING__… sets. When run again, it continues where it stopped."""
    console = Console(stderr=True)
    first = os.environ.get("RANK", "0") == "0"  # of several processes, only the first prints
    bar = counting(console, fact=LOSS)
    bar.disable = not first
    task = bar.add_task("training", total=None, loss=float("nan"))

    def show(step: Step) -> None:
        bar.update(task, completed=step.done, total=step.total, loss=step.loss)

    with exit_on_error():
        options = distill_settings.load().training
        winners = read_examples(examples)
        earlier = [example for file in replay or [] for example in read_examples(file)]
        from distill.training.train import train as train_policy  # loads torch

        with bar:
            trained = train_policy(winners, earlier, options, out, resume=not restart, on_progress=show)
    if first:
        console.print(_table(trained))


def _table(trained: Trained) -> Table:
    table = Table(title="Trained", show_header=False)
    table.add_row("examples", f"{trained.examples} ({trained.replayed} of earlier nights)")
    table.add_row("left out", ", ".join(f"{count} {why}" for why, count in trained.left_out.items()) or "none")
    table.add_row("steps", str(trained.steps))
    table.add_row("loss", f"{trained.losses[0]:.3f} → {trained.losses[-1]:.3f}")
    table.add_row("tokens", f"{trained.tokens:,} ({trained.tokens / max(trained.seconds, 1e-9):,.0f} a second)")
    table.add_row("peak memory", f"{trained.peak_memory_bytes / 2**20:,.0f} MiB on {trained.device}")
    table.add_row("checkpoints", "\n".join(str(folder) for folder in trained.checkpoints))
    return table
