"""``python -m distill collect`` and ``python -m distill curate``: archive the journal, then see what may train."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill import exits, settings
from distill.dataset.archive import Archive
from distill.dataset.collect import LOST, Collected
from distill.dataset.collect import collect as collect_records
from distill.dataset.curate import Curated
from distill.dataset.curate import curate as curate_records
from distill.dataset.files import content_hash, write_examples, write_held_out
from distill.exits import errors_in_words
from distill.progress import counting
from gateway import settings as gateway_settings

console = Console()


def collect(
    trust_clock: Annotated[
        bool, typer.Option("--trust-clock", help="Expire old records (KEEP_DAYS) although the clocks look wrong.")
    ] = False,
) -> None:
    """Archive what the journal's stream holds, acknowledge it, and trim Redis.

    Ends with 5 where records had left Redis before they were archived.
    """
    with errors_in_words():
        dataset = settings.load().dataset
        redis = gateway_settings.load().redis
        with console.status("collecting") as status:

            def show(done: Collected) -> None:
                status.update(f"collecting: {done.collected} records archived")

            done = asyncio.run(collect_records(redis, dataset, on_archived=show, trust_clock=trust_clock))
        console.print(_collected(done, Archive(dataset.archive_dir)))
        for path in done.unreadable:
            console.print(f"unreadable, kept as it came: {path}", style="yellow", markup=False, soft_wrap=True)
        for warning in done.warnings:
            console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
        if done.lost:
            console.print(LOST.format(done.lost), style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(exits.LOST)


def curate(
    out: Annotated[
        Path | None, typer.Option(help="Folder for examples.jsonl and held_out.jsonl; unset: only the table.")
    ] = None,
) -> None:
    """Sort the archive into what trains, what measures, and what is left out and why."""
    with errors_in_words():
        dataset = settings.load().dataset
        archive = Archive(dataset.archive_dir)
        with counting(console) as progress:
            bar = progress.add_task("curating", total=archive.count())
            liked = list(archive.feedback())
            progress.advance(bar, len(liked))
            curated = curate_records(archive.completions(), liked, dataset, on_record=lambda: progress.advance(bar))
        console.print(_curated(curated))
        console.print(f"content {content_hash(curated.examples, curated.held_out)}", soft_wrap=True)
        if out is not None:
            write_examples(out / "examples.jsonl", curated.examples)
            write_held_out(out / "held_out.jsonl", curated.held_out)
            console.print(f"written to {out}", markup=False, soft_wrap=True)


def _collected(done: Collected, archive: Archive) -> Table:
    rows = {
        "completions archived": done.completions,
        "feedback archived": done.feedback,
        "delivered again": done.duplicates,
        "unreadable": len(done.unreadable),
        "trimmed from Redis": done.trimmed,
        "too old to keep": done.expired,
        "lost before they were archived": done.lost,
        "rows in the archive": archive.count(),
    }
    return _counts("Collected", rows)


def _curated(curated: Curated) -> Table:
    left_out = {reason.value: count for reason, count in curated.excluded.items() if count}
    rows = {"trains": len(curated.examples), "held-out prompts": len(curated.held_out)}
    by_model = {f"trains, chosen by {name}": count for name, count in curated.reward_models.items()}
    if len(by_model) > 1:
        rows = rows | by_model
    return _counts("Curated", rows | left_out | {"all completions": curated.total})


def _counts(title: str, rows: dict[str, int]) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    return table
