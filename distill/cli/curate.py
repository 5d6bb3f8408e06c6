"""``python -m distill curate``: sort the archive into training winners, held-out prompts and records left out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill import settings
from distill.cli.tables import count_table
from distill.dataset.archive import Archive
from distill.dataset.curate import Curated
from distill.dataset.curate import curate as curate_records
from distill.dataset.files import content_hash, write_lines
from distill.exits import exit_on_error
from distill.progress import counting

console = Console()


def curate(
    out: Annotated[
        Path | None, typer.Option(help="Folder for examples.jsonl and held_out.jsonl; unset: only the table.")
    ] = None,
) -> None:
    """Sort the archive into winners that train, prompts that are held out, and records left out with their reason."""
    with exit_on_error():
        dataset = settings.load().dataset
        archive = Archive(dataset.archive_dir)
        with counting(console) as progress:
            bar = progress.add_task("curating", total=archive.count())
            curated = curate_records(
                archive.completions(), archive.feedback(), dataset, on_record=lambda: progress.advance(bar)
            )
        console.print(_table(curated))
        console.print(f"content {content_hash(curated.examples, curated.held_out)}", soft_wrap=True)
        if out is not None:
            write_lines(out / "examples.jsonl", curated.examples)
            write_lines(out / "held_out.jsonl", curated.held_out)
            console.print(f"written to {out}", markup=False, soft_wrap=True)


def _table(curated: Curated) -> Table:
    by_model = {f"trains, chosen by {name}": count for name, count in curated.reward_models.items()}
    return count_table(
        "Curated",
        {
            "trains": len(curated.examples),
            "held-out prompts": len(curated.held_out),
            **(by_model if len(by_model) > 1 else {}),
            **{reason.value: count for reason, count in curated.excluded.items() if count},
            "all completions": curated.total,
        },
    )
