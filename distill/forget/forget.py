"""Deletion on request: every record of a completion, a conversation or an API key, and every copy made of it.

The archive is held all the while, so that no collecting pass carries a record from where it still is to where it is
gone. Models that learned from a record are not undone by this, and neither are backups.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
import structlog

from distill.dataset.archive import Archive
from distill.dataset.archive_writer import writing
from distill.errors import NightError
from distill.forget import records
from distill.forget.copies import forget_copies
from distill.forget.wanted import Wanted
from gateway.journal.erase import Erased, spool_records
from gateway.journal.stream import stream_key
from gateway.redis_client import connection_options
from gateway.settings import RedisSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Places:
    """Folders in which gateways and nights keep what callers sent."""

    archive: Path
    draws: Path
    runs: Path
    spool: Path


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How much went, by where it was, and in words what could not be reached."""

    stream: int
    spool: int
    archive: int
    quarantine: int
    draws: int
    examples: int
    reports: int
    unreached: tuple[str, ...] = field(default=(), compare=False)


def forget(redis_settings: RedisSettings, places: Places, wanted: Wanted) -> Forgotten:
    """Delete all that is wanted. Killed or failed at any point, the same call again deletes the rest.

    Raises:
        DataError: A file cannot be read or written.
        NightError: Redis does not answer, or another process holds the archive.
    """
    wanted.prompts |= wanted.conversations
    stream = stream_key(redis_settings.key_prefix)
    archive = Archive(places.archive)
    try:
        with (
            writing(archive) as writer,
            redis.Redis.from_url(redis_settings.url, **connection_options(redis_settings)) as client,
        ):
            client.ping()
            unreached = _look_at_spool(places.spool, wanted)
            records.look_at_stream(client, stream, wanted)
            records.look_at_archive(archive, wanted)
            # Copies first, completions last: by them a repetition finds what else is to go.
            copies = forget_copies(places.draws, places.runs, wanted)
            quarantined = records.forget_in_quarantine(archive.folder, wanted)
            spool = Erased(0, 0) if unreached else records.forget_in_spool(places.spool, wanted)
            rows = records.forget_in_archive(archive, writer, wanted, "feedback")
            rows += records.forget_in_archive(archive, writer, wanted, "completion")
            entries = records.forget_in_stream(client, stream, wanted)
            unreached += _unreached(client, stream, archive, spool)
    except redis.RedisError as error:
        raise NightError(f"not all is forgotten: Redis said {type(error).__name__}; run it again later") from error
    log.info("forgotten", stream=entries, spool=spool.records, archive=rows, draws=copies.draws, reports=copies.reports)
    return Forgotten(
        stream=entries,
        spool=spool.records,
        archive=rows,
        quarantine=quarantined,
        draws=copies.draws,
        examples=copies.examples,
        reports=copies.reports,
        unreached=tuple(unreached),
    )


def _look_at_spool(spool_dir: Path, wanted: Wanted) -> list[str]:
    """Note what the spool holds; returns in words that it cannot be reached."""
    if not spool_dir.is_dir():
        return [f"there is no spool in {spool_dir} on this machine: run this where the gateways run, too"]
    try:
        for record in spool_records(spool_dir):
            wanted.look_at(record)
    except OSError as error:
        return [f"the spool {spool_dir} cannot be read ({error.strerror}): run this as the gateway's user"]
    return []


def _unreached(client: redis.Redis, stream: str, archive: Archive, spool: Erased) -> list[str]:
    """What is left and why, in words."""
    found = []
    if spool.waiting:
        found.append(f"{spool.waiting} records wait in the spool of a running gateway: run this again once they went")
    left = len(records.quarantined(archive.folder))
    if left:
        found.append(f"{left} records in the archive's quarantine cannot be read: nobody can tell whose they are")
    younger: Any = client.xlen(stream)
    if younger:
        found.append(
            f"{younger} other records wait in Redis, which may keep deleted text in one block with them: "
            "run this again after `python -m distill collect`"
        )
    files = records.rewrite_files(client)
    return found if files is None else [*found, files]
