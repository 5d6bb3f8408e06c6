"""``python -m distill forget``: a person asked for it."""

from __future__ import annotations

import re
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill import settings
from distill.dataset.archive import Archive
from distill.dataset.forget import Wanted
from distill.dataset.forget import forget as forget_records
from distill.exits import errors_in_words
from distill.nightly.lock import only_night
from gateway import settings as gateway_settings

_COMPLETION = re.compile(r"chatcmpl-[0-9a-f]{32}")
_CONVERSATION = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"[0-9a-f]{16}")

console = Console()


def forget(
    completion: Annotated[list[str] | None, typer.Option(help="Id of an answer, chatcmpl-…; may be repeated.")] = None,
    conversation: Annotated[
        list[str] | None, typer.Option(help="Key of a conversation, the archive's conversation_key; may be repeated.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Id of an API key, the first 16 hex digits of its hash; may be repeated.")
    ] = None,
) -> None:
    """Delete all records of an answer, a conversation or an API key: stream, archive, draws and curated examples."""
    for values, form, name in (
        (completion, _COMPLETION, "--completion"),
        (conversation, _CONVERSATION, "--conversation"),
        (key, _KEY, "--key"),
    ):
        if any(not form.fullmatch(value) for value in values or []):
            raise typer.BadParameter("this is no such id", param_hint=name)
    wanted = Wanted(set(completion or []), set(conversation or []), set(key or []))
    if not (wanted.completions or wanted.conversations or wanted.keys):
        raise typer.BadParameter("say what is to be forgotten: --completion, --conversation or --key")
    with errors_in_words():
        loaded = settings.load()
        # A night has examples in memory and appends to the draws.
        with only_night(loaded.night.runs_dir):
            done = forget_records(
                gateway_settings.load().redis,
                Archive(loaded.dataset.archive_dir),
                draws_dir=loaded.evaluation.draws_dir,
                runs_dir=loaded.night.runs_dir,
                wanted=wanted,
            )
        table = Table(title="Forgotten", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for where, count in (
            ("entries of the stream", done.stream),
            ("rows of the archive", done.archive),
            ("unreadable records", done.quarantine),
            ("draws", done.draws),
            ("curated examples and prompts", done.examples),
        ):
            table.add_row(where, f"{count:,}")
        console.print(table)
        console.print("Again once every gateway's spool is empty: what waits there comes later.", soft_wrap=True)
