"""``python -m distill report``: render a night's report again."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from distill import settings
from distill.exits import exit_on_error
from distill.run_dir import RunDir, find_run, runs

console = Console()


def report(
    run: Annotated[str, typer.Argument(help="A run's id or folder; unset: the last one.")] = "",
) -> None:
    """Render a night's report again from its facts, and print its path."""
    from distill.report.facts import NightFacts
    from distill.report.page import write_report

    with exit_on_error():
        chosen = _find_run(run)
        facts = NightFacts.read(chosen.path)
        console.print(facts.headline, markup=False, highlight=False)
        console.print(str(write_report(facts, chosen.path)), markup=False, highlight=False, soft_wrap=True)


def _find_run(id: str) -> RunDir:
    runs_dir = settings.load().night.runs_dir
    last = runs(runs_dir)[-1:]
    return last[0] if last and not id else find_run(runs_dir, id or "(none)")
