"""Progress bars, all alike: how many of how many, for how long, and how much longer."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def counting(console: Console, *, indent: str = "", fact: str = "", transient: bool = False) -> Progress:
    """A bar of steps done; add a task to it for each kind of step.

    Args:
        console: Where it is drawn.
        indent: What stands before each task's description.
        fact: One more column, in rich's format: ``loss {task.fields[loss]:.3f}``.
        transient: Whether it goes once it is full.
    """
    facts = [TextColumn(fact)] if fact else []
    return Progress(
        TextColumn(indent + "{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *facts,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )


LOSS = "loss {task.fields[loss]:.3f}"
"""The fact of a bar of training steps."""
