"""``python -m distill forget``: delete the data of an answer, a conversation or an API key on request."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

import typer
from rich.console import Console

from distill import settings
from distill.cli.tables import count_table
from distill.dataset.collect import collect
from distill.exits import exit_on_error
from distill.forget.forget import Deleted, Places
from distill.forget.forget import forget as forget_everywhere
from distill.forget.targets import Targets
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

    That is Redis's stream and its files, the spool, the archive, samples, rewards, curated examples and reports.
    Anything that could not be deleted is named. Exit codes: 0 done, 75 try again later, 3 a night runs, 2 a file
    cannot be read.
    """
    from distill.nightly.start import only_night  # slow to import: other commands do not need it

    for values, form, name in (
        (completion, _COMPLETION, "--completion"),
        (conversation, _CONVERSATION, "--conversation"),
        (key, _KEY, "--key"),
    ):
        if any(not form.fullmatch(value) for value in values or []):
            raise typer.BadParameter("not a valid id", param_hint=name)
    targets = Targets(set(completion or []), set(conversation or []), set(key or []))
    if not (targets.completions or targets.conversations or targets.keys):
        raise typer.BadParameter("give at least one of --completion, --conversation or --key")
    with exit_on_error():
        loaded, gateway = settings.load(), gateway_settings.load()
        places = Places(
            archive=loaded.dataset.archive_dir,
            draws=loaded.evaluation.draws_dir,
            runs=loaded.night.runs_dir,
            spool=gateway.journal.spool_dir,
        )
        with only_night(loaded.night.runs_dir):  # a night holds examples in memory and appends to the samples
            # Redis only marks an entry as deleted while younger ones in the same block remain: empty the stream first.
            asyncio.run(collect(gateway.redis, loaded.dataset))
            done = forget_everywhere(gateway.redis, places, targets)
        _print(done)


def _print(done: Deleted) -> None:
    counts = {
        "entries of the stream": done.stream,
        "records in the spool": done.spool,
        "rows of the archive": done.archive,
        "unreadable records": done.quarantine,
        "samples": done.draws,
        "curated examples and prompts": done.examples,
        "prompts shown in reports": done.reports,
    }
    console.print(count_table("Deleted", counts))
    for text in done.unreached:
        console.print(f"not reached: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "Not deleted: backups and replicas, files that you wrote elsewhere (curate --out, sample --out), and the "
        "effect on models that were trained with it.",
        soft_wrap=True,
    )
