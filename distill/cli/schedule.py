"""``python -m distill schedule``: a night every day."""

from __future__ import annotations

import typer
from rich.console import Console

from distill import exits, settings
from gateway.telemetry import configure_logging

console = Console()


def schedule() -> None:
    """Run until stopped; start a night every day at DISTILL_NIGHT__AT, each in its own process."""
    from distill.nightly.schedule import run_schedule

    configure_logging("info", "console")
    raise typer.Exit(exits.run_to_code(lambda: run_schedule(settings.load().night.at, console)))
