"""The journal's records wherever they lie: Redis's stream and its files, the spool, the archive and its quarantine."""

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
from distill.forget.wanted import Wanted
from gateway.errors import JournalError
from gateway.journal.erase import Erased, erase
from gateway.journal.record import CompletionRecord, Record
from gateway.journal.retention import delete_entries
from gateway.journal.stream import read_entries

_COLUMNS = ["id", "kind", "key_id", "conversation_key", "completion_id"]
_REWRITE_TIMEOUT_S = 60.0
_SHIP_TIMEOUT_S = 10.0
_POLL_S = 0.1


def look_at_stream(client: redis.Redis, stream: str, wanted: Wanted) -> None:
    """Note every completion of the stream that is to go."""
    for _, record in _entries(client, stream):
        wanted.look_at(record)


def look_at_archive(archive: Archive, wanted: Wanted) -> None:
    """Note every completion of the archive that is to go."""
    for path in archive.parts():
        for row in _facts(path):
            if row["kind"] == "completion" and wanted.meets(row["id"], row["key_id"], row["conversation_key"]):
                wanted.note(row["id"], row["conversation_key"])


def forget_in_spool(spool_dir: Path, wanted: Wanted) -> Erased:
    """Erase from the spool; wait a moment for what a running gateway is just sending to Redis.

    Raises:
        OSError: The spool cannot be read or written.
    """
    deadline = time.monotonic() + _SHIP_TIMEOUT_S
    records = 0
    while True:
        erased = erase(spool_dir, wanted.has)
        records += erased.records
        if not erased.waiting or time.monotonic() > deadline:
            return Erased(records, erased.waiting)
        time.sleep(_POLL_S)


def forget_in_stream(client: redis.Redis, stream: str, wanted: Wanted) -> int:
    """Delete from the stream: feedback first, for a completion is what leads to it."""
    going: dict[bool, list[str]] = {False: [], True: []}  # feedback, completions
    for entry_id, record in _entries(client, stream):
        if wanted.has(record):
            going[isinstance(record, CompletionRecord)].append(entry_id)
    ids = going[False] + going[True]
    delete_entries(client, stream, GROUP, ids)
    return len(ids)


def forget_in_archive(archive: Archive, writer: ArchiveWriter, wanted: Wanted, kind: str) -> int:
    """Delete rows of one kind from the archive."""
    gone = 0
    for path in archive.parts():
        stays = [row["kind"] != kind or not wanted.meets(**_without_kind(row)) for row in _facts(path)]
        if all(stays):
            continue
        with open_part(path) as part, readable(path):
            kept = part.read().filter(pa.array(stays))
        writer.keep(path, kept)
        gone += stays.count(False)
    return gone


def forget_in_quarantine(folder: Path, wanted: Wanted) -> int:
    """Delete records that no version can read and that hold one of the ids."""
    sought = [f'"{name}"'.encode() for name in wanted.completions | wanted.keys]
    gone = 0
    for path in quarantined(folder):
        with readable(path):
            content = path.read_bytes()
        if any(name in content for name in sought):
            path.unlink()
            gone += 1
    return gone


def quarantined(folder: Path) -> list[Path]:
    """The files of records that no version can read."""
    return sorted(folder.glob("_quarantine/*.json"))


def rewrite_files(client: redis.Redis) -> str | None:
    """Have Redis write its files anew from what it holds now, and wait for it.

    What was deleted from the stream, and what earlier nights had trimmed, lies in the append-only file (and in a
    snapshot, where Redis saves some) until then.

    Returns:
        None once the files are new, or why they are not, in words.
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
                return "Redis could not write its snapshot anew: run BGSAVE there"
    except TimeoutError:
        return "Redis is still rewriting its files: they hold the records until it is done"
    except redis.ResponseError as error:
        return f"Redis does not let its files be rewritten ({error}): have its operator run BGREWRITEAOF and BGSAVE"
    return None


def _persistence(client: redis.Redis) -> dict[str, Any]:
    found: dict[str, Any] = client.info("persistence")
    return found


def _wait(client: redis.Redis) -> None:
    """Wait until Redis writes no file anew."""
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


def _without_kind(row: dict[str, Any]) -> dict[str, Any]:
    names = {"id": "id", "key_id": "key_id", "conversation_key": "conversation", "completion_id": "completion_id"}
    return {name: row[column] for column, name in names.items()}
