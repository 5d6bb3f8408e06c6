"""``python -m distill night``: a small night on the embedded stack."""

from __future__ import annotations

import typer
from rich.console import Console

from distill import exits, settings
from gateway.telemetry import configure_logging

console = Console()


def night() -> None:
    """Run a small, real night on this machine: the embedded stack, some traffic, then `run`."""
    from distill.nightly.demo import run_demo  # loads the embedded stack

    def run() -> int:
        settings.load()  # a bad setting ends the command before the stack starts
        return run_demo(console)

    configure_logging("warning", "console")
    raise typer.Exit(exits.run_to_code(run))
