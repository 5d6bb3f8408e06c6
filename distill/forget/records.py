"""Deletion of the journal's records: in Redis's stream and its files, the spool, the archive and its quarantine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import redis

from distill.dataset.archive import Archive, open_part, readable
from distill.dataset.archive_writer import ArchiveWriter
from distill.dataset.collect import GROUP
from distill.forget.targets import Targets
from gateway.errors import JournalError
from gateway.journal.erase import Erased, erase
from gateway.journal.record import CompletionRecord, Record
from gateway.journal.retention import delete_entries
from gateway.journal.stream import read_entries

_COLUMNS = ["id", "kind", "key_id", "conversation_key", "completion_id"]
_REWRITE_TIMEOUT_S = 60.0
_SHIP_TIMEOUT_S = 10.0
_POLL_S = 0.1


def find_in_stream(client: redis.Redis, stream: str, targets: Targets) -> None:
    """Add the stream's completions that match to the targets."""
    for _, record in _entries(client, stream):
        targets.add_if_matched(record)


def find_in_archive(archive: Archive, targets: Targets) -> None:
    """Add the archive's completions that match to the targets."""
    for path in archive.parts():
        for row in _facts(path):
            if row["kind"] == "completion" and _matches(targets, row):
                targets.add(row["id"], row["conversation_key"])


def delete_from_spool(spool_dir: Path, targets: Targets) -> Erased:
    """Delete from the spool; wait a moment for records that a running gateway is sending to Redis.

    Raises:
        OSError: The spool cannot be read or written.
    """
    deadline = time.monotonic() + _SHIP_TIMEOUT_S
    records = 0
    while True:
        erased = erase(spool_dir, targets.contains)
        records += erased.records
        if not erased.waiting or time.monotonic() > deadline:
            return Erased(records, erased.waiting)
        time.sleep(_POLL_S)


def delete_from_stream(client: redis.Redis, stream: str, targets: Targets) -> int:
    """Delete from the stream: feedback first, because it is found through its completion."""
    chosen: dict[bool, list[str]] = {False: [], True: []}  # feedback, completions
    for entry_id, record in _entries(client, stream):
        if targets.contains(record):
            chosen[isinstance(record, CompletionRecord)].append(entry_id)
    ids = chosen[False] + chosen[True]
    delete_entries(client, stream, GROUP, ids)
    return len(ids)


def delete_from_archive(archive: Archive, writer: ArchiveWriter, targets: Targets, kind: str) -> int:
    """Delete rows of one kind from the archive; return their number."""
    count = 0
    for path in archive.parts():
        kept = [row["kind"] != kind or not _matches(targets, row) for row in _facts(path)]
        if all(kept):
            continue
        with open_part(path) as part, readable(path):
            rows = part.read().filter(pa.array(kept))
        writer.keep(path, rows)
        count += kept.count(False)
    return count


def delete_from_quarantine(folder: Path, targets: Targets) -> int:
    """Delete unreadable records that contain one of the ids; return their number."""
    sought = [f'"{name}"'.encode() for name in targets.completions | targets.keys]
    count = 0
    for path in quarantined(folder):
        with readable(path):
            content = path.read_bytes()
        if any(name in content for name in sought):
            path.unlink()
            count += 1
    return count


def quarantined(folder: Path) -> list[Path]:
    """Return the files of unreadable records."""
    return sorted(folder.glob("_quarantine/*.json"))


def rewrite_files(client: redis.Redis) -> str | None:
    """Have Redis rewrite its files, and wait for it.

    Until then, entries that were deleted from the stream, or trimmed by earlier nights, are still in the append-only
    file (and in a snapshot, if Redis saves any).

    Returns:
        None if the files are rewritten, else the reason in words.
    """
    try:
        if _persistence(client)["aof_enabled"]:
            _wait(client)
            client.bgrewriteaof()
            _wait(client)
            if _persistence(client)["aof_last_bgrewrite_status"] != "ok":
                return "Redis could not rewrite its append-only file: run BGREWRITEAOF there"
        points: Any = client.config_get("save")
        if points.get("save"):
            _wait(client)
            client.bgsave()
            _wait(client)
            if _persistence(client)["rdb_last_bgsave_status"] != "ok":
                return "Redis could not rewrite its snapshot: run BGSAVE there"
    except TimeoutError:
        return "Redis is still rewriting its files: they hold the records until it is done"
    except redis.ResponseError as error:
        return f"Redis does not let its files be rewritten ({error}): have its operator run BGREWRITEAOF and BGSAVE"
    return None


def _persistence(client: redis.Redis) -> dict[str, Any]:
    found: dict[str, Any] = client.info("persistence")
    return found


def _wait(client: redis.Redis) -> None:
    """Wait until Redis rewrites no file."""
    busy = ("aof_rewrite_scheduled", "aof_rewrite_in_progress", "rdb_bgsave_in_progress")
    deadline = time.monotonic() + _REWRITE_TIMEOUT_S
    while any(_persistence(client).get(name) for name in busy):
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(_POLL_S)


def _entries(client: redis.Redis, stream: str) -> Iterator[tuple[str, Record]]:
    """Yield the entry id and the record of every entry that can be read."""
    for entry in read_entries(client, stream):
        with contextlib.suppress(JournalError):
            yield entry.entry_id, entry.record()


def _facts(path: Path) -> list[dict[str, Any]]:
    with open_part(path) as part, readable(path):
        rows: list[dict[str, Any]] = part.read(columns=_COLUMNS).to_pylist()
    return rows


def _matches(targets: Targets, row: dict[str, Any]) -> bool:
    return targets.matches(row["id"], row["key_id"], row["conversation_key"], row["completion_id"])
