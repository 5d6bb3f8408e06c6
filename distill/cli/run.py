"""``python -m distill run``, ``night``, ``schedule``, ``report`` and ``settings``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from distill import exits
from distill import settings as distill_settings
from distill.nightly.results import STEPS
from distill.run_dir import RunDir, find_run, runs
from distill.settings import Settings
from gateway import environment
from gateway import settings as gateway_settings
from gateway.telemetry import configure_logging

EPILOG = "Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in exits.TABLE.items()) + "."
_ENV_HEADER = """\
# Every setting of the night with its default; where Redis, the backend and the reward model are it reads from the
# gateway's own (.env.example). Take the sign off a line to change it, then load both files before the start.
# Made by `python -m distill settings --env`.
"""

console = Console()
errors = Console(stderr=True)


def run(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what a night would do; change nothing.")] = False,
    until: Annotated[str, typer.Option(help=f"Stop after this step: {', '.join(STEPS)}.")] = STEPS[-1],
    resume: Annotated[str, typer.Option(help="Take up this run again; unset: the last one, if unfinished.")] = "",
    new: Annotated[bool, typer.Option("--new", help="Begin anew although the last run is unfinished.")] = False,
) -> None:
    """Run a night: collect, curate, train, draw, score, gate, publish, load, canary, promote, report."""
    if until not in STEPS:
        raise typer.BadParameter(f"{until} is no step; steps are {', '.join(STEPS)}", param_hint="--until")
    configure_logging("warning", "console")
    warnings.simplefilter("ignore", FutureWarning)  # of libraries to libraries
    # Before torch is loaded. Where anything else wants a core, OpenMP's threads that spin at barriers take it from the
    # thread that is waited for: beside a busy llama.cpp a training step took minutes, and with this seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    began: list[RunDir] = []
    code = _told(lambda settings: _run(settings, began, dry_run, until, resume or None, new))
    if not dry_run and code != exits.ANOTHER_NIGHT:  # whose metrics they are
        _write_metrics(began[-1] if began else None, code)
    raise typer.Exit(code)


def night() -> None:
    """A whole night on this machine: the embedded stack, some traffic, then `run`; small and real."""
    from distill.nightly.demo import main

    configure_logging("warning", "console")
    raise typer.Exit(_told(lambda _: main(console)))


def schedule() -> None:
    """Stay, and run a night every day at DISTILL_NIGHT__AT; each in a process of its own."""
    from distill.nightly.schedule import run_schedule

    configure_logging("info", "console")
    raise typer.Exit(_told(lambda settings: run_schedule(settings.night.at, console)))


def report(
    run: Annotated[str, typer.Argument(help="A run's id or folder; unset: the last one.")] = "",
) -> None:
    """Render a night's report anew, from its facts, and say where it is."""
    from distill.report.facts import NightFacts
    from distill.report.page import write_report

    def render(settings: Settings) -> int:
        chosen = _chosen(settings.night.runs_dir, run)
        facts = NightFacts.read(chosen.path)
        console.print(facts.headline, markup=False, highlight=False)
        console.print(str(write_report(facts, chosen.path)), markup=False, highlight=False, soft_wrap=True)
        return exits.FINISHED

    raise typer.Exit(_told(render))


def settings(
    env: Annotated[bool, typer.Option("--env", help="As .env.night.example, not as a table.")] = False,
) -> None:
    """List every setting of the night, its default and what it means."""
    rows = distill_settings.variables()
    typer.echo(environment.example(rows, _ENV_HEADER) if env else environment.table(rows), nl=False)


def _run(settings: Settings, began: list[RunDir], dry_run: bool, until: str, resume: str | None, new: bool) -> int:
    # Imported here: the other commands need none of it.
    from distill.nightly import pipeline
    from distill.nightly.collecting import collect_first
    from distill.nightly.dry_run import print_plan
    from distill.nightly.retention import drop_old_runs
    from distill.nightly.start import only_night, start

    gateway = gateway_settings.load()
    if dry_run:
        print_plan(settings, gateway, console)
        return exits.FINISHED
    # Before the lock is taken: records are archived even if another night hangs, or this one fails or cannot start.
    collecting = collect_first(gateway.redis, settings.dataset, console)
    if collecting.error is not None:
        errors.print(
            f"collecting failed: {exits.words_of(collecting.error)}", style="red", markup=False, soft_wrap=True
        )
    with only_night(settings.night.runs_dir):
        night = start(settings, gateway, console, until=until, resume=resume, new=new)
        night.collecting = collecting
        began.append(night.run)
        report = pipeline.run(night)
        if report is not None:
            console.print(f"[bold]{report.headline}[/]", highlight=False, soft_wrap=True)
            console.print(str(report.page), markup=False, highlight=False, soft_wrap=True)
            if deleted := drop_old_runs(settings, night.serving):
                console.print(f"{len(deleted)} old runs deleted (DISTILL_NIGHT__KEEP_RUNS)", highlight=False)
    collecting.result()  # the exit code must show that collecting failed, although the night went on without it
    return exits.FINISHED


def _told(action: Callable[[Settings], int | None]) -> int:
    """Run a command; what goes wrong is one line and a code to alert on."""
    try:
        with exits.ended_by_sigterm():
            return action(distill_settings.load()) or exits.FINISHED
    except exits.ERRORS as error:
        return exits.tell(error)
    except KeyboardInterrupt:
        errors.print(exits.TABLE[exits.INTERRUPTED])
        return exits.INTERRUPTED
    except SystemExit:  # from the handler below, or from training once its checkpoint is written
        errors.print(exits.TABLE[exits.TERMINATED])
        return exits.TERMINATED


def _write_metrics(run: RunDir | None, code: int) -> None:
    from distill.nightly.metrics import write_metrics

    try:
        path = distill_settings.load().night.metrics_file
        if path is not None:
            write_metrics(path, run, code)
    except exits.ERRORS as error:
        errors.print(f"no metrics: {exits.words_of(error)}", style="red", markup=False, highlight=False)


def _chosen(runs_dir: Path, id: str) -> RunDir:
    last = runs(runs_dir)[-1:]
    return last[0] if last and not id else find_run(runs_dir, id or "(none)")
