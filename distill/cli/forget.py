"""``python -m distill forget``: delete what a person asked to have deleted."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from distill import settings
from distill.dataset.collect import collect
from distill.exits import errors_in_words
from distill.forget.forget import Forgotten, Places
from distill.forget.forget import forget as forget_everywhere
from distill.forget.wanted import Wanted
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
    """Delete all records of an answer, a conversation or an API key, and every copy that gateways and nights made.

    That is Redis's stream and its files, the spool, the archive, draws, rewards, curated examples and reports. What
    cannot be reached is named. Exit codes: 0 done, 75 try again later, 3 a night runs, 2 a file cannot be read.
    """
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
    from distill.nightly.start import only_night  # imported here: the other commands need none of it

    with errors_in_words():
        loaded, gateway = settings.load(), gateway_settings.load()
        places = Places(
            archive=loaded.dataset.archive_dir,
            draws=loaded.evaluation.draws_dir,
            runs=loaded.night.runs_dir,
            spool=gateway.journal.spool_dir,
        )
        with only_night(loaded.night.runs_dir):  # a night has examples in memory and appends to the draws
            # Redis only marks an entry as deleted while younger ones in the same block remain: empty the stream first.
            asyncio.run(collect(gateway.redis, loaded.dataset))
            done = forget_everywhere(gateway.redis, places, wanted)
        _tell(done)


def _tell(done: Forgotten) -> None:
    table = Table(title="Forgotten", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for where, count in (
        ("entries of the stream", done.stream),
        ("records in the spool", done.spool),
        ("rows of the archive", done.archive),
        ("unreadable records", done.quarantine),
        ("draws", done.draws),
        ("curated examples and prompts", done.examples),
        ("prompts shown in reports", done.reports),
    ):
        table.add_row(where, f"{count:,}")
    console.print(table)
    for words in done.unreached:
        console.print(f"not reached: {words}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "Not undone: backups and replicas, files that you had written elsewhere (curate --out, sample --out), and what "
        "a model has learned.",
        soft_wrap=True,
    )
