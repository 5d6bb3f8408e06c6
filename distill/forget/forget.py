"""Deletion on request: every record of a completion, a conversation or an API key, and every copy made of it.

The archive stays locked meanwhile, so that no collecting pass moves a record from a place that is still to be searched
to one that was. Models that were trained on a record do not change, and neither do backups.
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
from distill.forget.copies import delete_copies
from distill.forget.targets import Targets
from gateway.journal.erase import Erased, spool_records
from gateway.journal.stream import stream_key
from gateway.redis_client import connection_options
from gateway.settings import RedisSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Places:
    """Folders in which gateways and nights keep callers' texts."""

    archive: Path
    draws: Path
    runs: Path
    spool: Path


@dataclass(frozen=True, slots=True)
class Deleted:
    """The number of deleted items, by place, and in words the places that could not be reached."""

    stream: int
    spool: int
    archive: int
    quarantine: int
    draws: int
    examples: int
    reports: int
    unreached: tuple[str, ...] = field(default=(), compare=False)


def forget(redis_settings: RedisSettings, places: Places, targets: Targets) -> Deleted:
    """Delete all targets. After a kill or an error at any point, the same call deletes the rest.

    Raises:
        DataError: A file cannot be read or written.
        NightError: Redis does not answer, or another process holds the archive.
    """
    targets.prompts |= targets.conversations
    stream = stream_key(redis_settings.key_prefix)
    archive = Archive(places.archive)
    try:
        with (
            writing(archive) as writer,
            redis.Redis.from_url(redis_settings.url, **connection_options(redis_settings)) as client,
        ):
            client.ping()
            unreached = _find_in_spool(places.spool, targets)
            records.find_in_stream(client, stream, targets)
            records.find_in_archive(archive, targets)
            # Copies first, completions last: a repeated call finds the other items through the completions.
            copies = delete_copies(places.draws, places.runs, targets)
            quarantined = records.delete_from_quarantine(archive.folder, targets)
            spool = Erased(0, 0) if unreached else records.delete_from_spool(places.spool, targets)
            rows = records.delete_from_archive(archive, writer, targets, "feedback")
            rows += records.delete_from_archive(archive, writer, targets, "completion")
            entries = records.delete_from_stream(client, stream, targets)
            unreached += _unreached(client, stream, archive, spool)
    except redis.RedisError as error:
        raise NightError(f"not everything is deleted: Redis said {type(error).__name__}; run it again later") from error
    log.info("forgotten", stream=entries, spool=spool.records, archive=rows, draws=copies.draws, reports=copies.reports)
    return Deleted(
        stream=entries,
        spool=spool.records,
        archive=rows,
        quarantine=quarantined,
        draws=copies.draws,
        examples=copies.examples,
        reports=copies.reports,
        unreached=tuple(unreached),
    )


def _find_in_spool(spool_dir: Path, targets: Targets) -> list[str]:
    """Add targets found in the spool; return in words whether it cannot be reached."""
    if not spool_dir.is_dir():
        return [f"there is no spool in {spool_dir} on this machine: run this where the gateways run, too"]
    try:
        for record in spool_records(spool_dir):
            targets.add_if_matched(record)
    except OSError as error:
        return [f"the spool {spool_dir} cannot be read ({error.strerror}): run this as the gateway's user"]
    return []


def _unreached(client: redis.Redis, stream: str, archive: Archive, spool: Erased) -> list[str]:
    """Return in words what is left, and why."""
    found = []
    if spool.waiting:
        found.append(f"{spool.waiting} records wait in the spool of a running gateway: run this again later")
    left = len(records.quarantined(archive.folder))
    if left:
        found.append(f"{left} records in the archive's quarantine cannot be read: it is not known whose they are")
    younger: Any = client.xlen(stream)
    if younger:
        found.append(
            f"{younger} other records wait in Redis, which may keep deleted text in one block with them: "
            "run this again after `python -m distill collect`"
        )
    files = records.rewrite_files(client)
    return found if files is None else [*found, files]
