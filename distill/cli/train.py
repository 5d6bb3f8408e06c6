"""``python -m distill train``: from a file of curated examples to checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill import settings as distill_settings
from distill.dataset.files import read_examples
from distill.exits import errors_in_words
from distill.progress import LOSS, counting

if TYPE_CHECKING:
    from distill.training.callbacks import Step
    from distill.training.train import Trained

Examples = Annotated[Path, typer.Argument(help="Examples file, as `python -m distill curate` writes it.")]
Out = Annotated[Path, typer.Option(help="Folder of this training: checkpoints, TensorBoard, trained.json.")]
Replay = Annotated[list[Path] | None, typer.Option(help="Examples file of an earlier night; may be given repeatedly.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away what is in the folder; else go on from there.")]


def train(examples: Examples, out: Out, replay: Replay = None, restart: Restart = False) -> None:
    """Teach the base model its winners; DISTILL_TRAINING__… says how. Run again, it goes on where it stopped."""
    console = Console(stderr=True)
    first = os.environ.get("RANK", "0") == "0"  # of several processes, one speaks
    bar = counting(console, fact=LOSS)
    bar.disable = not first
    task = bar.add_task("training", total=None, loss=float("nan"))

    def show(step: Step) -> None:
        bar.update(task, completed=step.done, total=step.total, loss=step.loss)

    with errors_in_words():
        options = distill_settings.load().training
        winners = read_examples(examples)
        earlier = [example for file in replay or [] for example in read_examples(file)]
        from distill.training.train import train as train_policy  # torch: only where it is needed

        with bar:
            trained = train_policy(winners, earlier, options, out, resume=not restart, on_progress=show)
    if first:
        console.print(_table(trained))


def _table(trained: Trained) -> Table:
    table = Table("what", "how much", title="Trained", show_header=False)
    table.add_row("examples", f"{trained.examples} ({trained.replayed} of earlier nights)")
    table.add_row("left out", ", ".join(f"{count} {why}" for why, count in trained.left_out.items()) or "none")
    table.add_row("steps", str(trained.steps))
    table.add_row("loss", f"{trained.losses[0]:.3f} → {trained.losses[-1]:.3f}")
    table.add_row("tokens", f"{trained.tokens:,} ({trained.tokens / max(trained.seconds, 1e-9):,.0f} a second)")
    table.add_row("peak memory", f"{trained.peak_memory_bytes / 2**20:,.0f} MiB on {trained.device}")
    table.add_row("checkpoints", "\n".join(str(folder) for folder in trained.checkpoints))
    return table
