"""``python -m distill run``: a night."""

from __future__ import annotations

import os
import warnings
from typing import Annotated

import typer
from rich.console import Console

from distill import exits
from distill import settings as distill_settings
from distill.nightly.results import STEPS
from distill.run_dir import RunDir
from gateway import settings as gateway_settings
from gateway.telemetry import configure_logging

EPILOG = "Exit codes: " + "; ".join(f"{code}: {meaning}" for code, meaning in exits.TABLE.items()) + "."

console = Console()
stderr = Console(stderr=True)


def run(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what a night would do; change nothing.")] = False,
    until: Annotated[str, typer.Option(help=f"Stop after this step: {', '.join(STEPS)}.")] = STEPS[-1],
    resume: Annotated[str, typer.Option(help="Resume this run; unset: the last one, if it is unfinished.")] = "",
    new: Annotated[bool, typer.Option("--new", help="Start a new run although the last one is unfinished.")] = False,
) -> None:
    """Run a night: collect, curate, train, draw, score, gate, publish, load, canary, promote, report."""
    if until not in STEPS:
        raise typer.BadParameter(f"{until} is no step; steps are {', '.join(STEPS)}", param_hint="--until")
    configure_logging("warning", "console")
    warnings.simplefilter("ignore", FutureWarning)  # libraries address these to other libraries
    # Set before torch is loaded. By default OpenMP's idle threads spin at barriers and take the core from the thread
    # they wait for: next to a busy llama.cpp a training step took minutes; with this setting it takes seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    started: list[RunDir] = []
    code = exits.run_to_code(lambda: _run(started, dry_run, until, resume or None, new))
    if not dry_run and code != exits.ANOTHER_NIGHT:  # the other night writes the metrics
        _write_metrics(started[-1] if started else None, code)
    raise typer.Exit(code)


def _run(started: list[RunDir], dry_run: bool, until: str, resume: str | None, new: bool) -> None:
    """Run or resume a night; add its folder to ``started``."""
    # Imported here: the other commands need none of it.
    from distill.nightly import pipeline
    from distill.nightly.collecting import collect_first
    from distill.nightly.dry_run import print_plan
    from distill.nightly.retention import drop_old_runs
    from distill.nightly.start import only_night, start

    settings, gateway = distill_settings.load(), gateway_settings.load()
    if dry_run:
        print_plan(settings, gateway, console)
        return
    # Before the lock is taken: records are archived even if another night hangs, or this one fails or cannot start.
    collecting = collect_first(gateway.redis, settings.dataset, console)
    if collecting.error is not None:
        stderr.print(
            f"collecting failed: {exits.one_line(collecting.error)}", style="red", markup=False, soft_wrap=True
        )
    with only_night(settings.night.runs_dir):
        night = start(settings, gateway, console, until=until, resume=resume, new=new)
        night.collecting = collecting
        started.append(night.run)
        report = pipeline.run(night)
        if report is not None:
            console.print(f"[bold]{report.headline}[/]", highlight=False, soft_wrap=True)
            console.print(str(report.page), markup=False, highlight=False, soft_wrap=True)
            if deleted := drop_old_runs(settings, night.serving):
                console.print(f"{len(deleted)} old runs deleted (DISTILL_NIGHT__KEEP_RUNS)", highlight=False)
    collecting.result()  # the exit code must show that collecting failed, although the night went on without it


def _write_metrics(run: RunDir | None, code: int) -> None:
    from distill.nightly.metrics import write_metrics

    try:
        path = distill_settings.load().night.metrics_file
        if path is not None:
            write_metrics(path, run, code)
    except exits.ERRORS as error:
        stderr.print(f"no metrics: {exits.one_line(error)}", style="red", markup=False, highlight=False)
