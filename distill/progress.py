"""Progress bars, the same everywhere: steps done of all steps, the time passed and the time left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOSS = "loss {task.fields[loss]:.3f}"
"""The extra column of a bar of training steps."""


def counting(console: Console, *, indent: str = "", fact: str = "", transient: bool = False) -> Progress:
    """Return a progress display; add a task to it for each kind of step.

    Args:
        console: Where it is drawn.
        indent: Text before each task's description.
        fact: An extra column in rich's format, like ``LOSS``.
        transient: Remove the bar when it is full.
    """
    return Progress(
        TextColumn(indent + "{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn(fact)] if fact else []),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )
