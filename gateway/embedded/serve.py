"""Run the embedded stack as a command: until Ctrl-C, with every error in one line."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gateway.embedded.stack import EmbeddedStack
from gateway.errors import GatewayError
from gateway.processes.signals import raise_on_signals
from gateway.settings import PREFIX, load
from gateway.telemetry import configure_logging

EXIT_OK = 0
EXIT_FAILED = 1


def main() -> int:
    """Keep the stack running until Ctrl-C, with the GATEWAY_ variables of the environment; return the exit code."""
    console = Console()
    return run_command(console, lambda: serve(console), interrupted=EXIT_OK)


def serve(console: Console) -> int:
    port = load().port
    given = {name.upper(): value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    with EmbeddedStack(port=port, settings=given, on_step=step_printer(console)) as stack:
        rows = Table.grid(padding=(0, 2))
        rows.add_row("API", f"{stack.url}/v1   (OpenAI's chat API)")
        rows.add_row("Documentation", f"{stack.url}/docs")
        rows.add_row("Metrics", f"{stack.url}/metrics")
        rows.add_row("Logs", str(stack.log_dir))
        hint = Text("Ctrl-C stops everything.", style="dim")
        console.print(Panel(Group(rows, hint), title="Serving", title_align="left"))
        console.print(stack.wait(), markup=False, highlight=False)
    return EXIT_FAILED


def run_command(console: Console, command: Callable[[], int], *, interrupted: int) -> int:
    """Run a command and return its exit code; ``interrupted`` after Ctrl-C, SIGTERM or a closed terminal."""
    configure_logging("warning", "console")
    try:
        with raise_on_signals(KeyboardInterrupt(), signal.SIGTERM, signal.SIGHUP):
            return command()
    except KeyboardInterrupt:
        console.print("stopped")
        return interrupted
    except GatewayError as error:
        console.print(error.message, style="red", markup=False, highlight=False)
        return EXIT_FAILED


def step_printer(console: Console) -> Callable[[str], None]:
    """Return a function that prints a step with the seconds since now."""
    started_s = time.monotonic()

    def print_step(step: str) -> None:
        console.print(f"{time.monotonic() - started_s:6.1f} s  {step}", style="dim", markup=False, highlight=False)

    return print_step
