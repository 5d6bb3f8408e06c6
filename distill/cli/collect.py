"""``python -m distill collect``: archive the journal."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from distill import exits, settings
from distill.cli.tables import count_table
from distill.dataset.archive import Archive
from distill.dataset.collect import LOST, Collected
from distill.dataset.collect import collect as collect_records
from gateway import settings as gateway_settings

console = Console()


def collect(
    trust_clock: Annotated[
        bool, typer.Option("--trust-clock", help="Delete old records (KEEP_DAYS) even if the clocks look wrong.")
    ] = False,
) -> None:
    """Archive the records in the journal's stream, acknowledge them, and trim Redis.

    Exit code 5: records had left Redis before they were archived.
    """
    with exits.exit_on_error():
        dataset = settings.load().dataset
        redis = gateway_settings.load().redis
        with console.status("collecting") as status:

            def show(done: Collected) -> None:
                status.update(f"collecting: {done.collected} records archived")

            done = asyncio.run(collect_records(redis, dataset, on_archived=show, trust_clock=trust_clock))
        counts = {
            "completions archived": done.completions,
            "feedback archived": done.feedback,
            "archived before": done.duplicates,
            "unreadable": len(done.unreadable),
            "trimmed from Redis": done.trimmed,
            "deleted as too old": done.expired,
            "lost before they were archived": done.lost,
            "rows in the archive": Archive(dataset.archive_dir).count(),
        }
        console.print(count_table("Collected", counts))
        for path in done.unreadable:
            console.print(f"unreadable, kept as it came: {path}", style="yellow", markup=False, soft_wrap=True)
        for warning in done.warnings:
            console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
        if done.lost:
            console.print(LOST.format(done.lost), style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(exits.LOST)
