"""Deletion on request: every record of a completion, a conversation or an API key, wherever the night keeps it.

The archive is held all the while, so that no collecting pass carries a record from where it still is to where it is
gone. What a gateway has in its spool reaches the stream later: forget again once its spool is empty. Models that
learned from a record and reports that quote it are not undone by this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import pyarrow as pa
import redis
import structlog

from distill.dataset.archive import Archive, open_part, readable
from distill.dataset.archive_writer import ArchiveWriter, writing
from distill.dataset.split import conversation_key
from distill.errors import DataError, NightError
from distill.run_dir import whole_lines, write_atomically
from gateway.errors import JournalError
from gateway.journal.record import CompletionRecord, Record, decode
from gateway.journal.stream import stream_key
from gateway.redis_client import connection_options
from gateway.settings import RedisSettings

_BATCH = 500
_COLUMNS = ["id", "kind", "key_id", "conversation_key", "completion_id"]

log = structlog.get_logger()


@dataclass(slots=True)
class Wanted:
    """What is to be forgotten; grows by what is found to belong to it.

    ``completions`` are their ids, ``conversations`` the keys of ``split.conversation_key``, ``keys`` ids of API keys.
    """

    completions: set[str] = field(default_factory=set)
    conversations: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    prompts: set[str] = field(default_factory=set)
    """Conversations of what was found: draws and examples of the same beginning are other copies of it."""

    def meets(self, id: str, key_id: str | None, conversation: str | None, completion_id: str | None = None) -> bool:
        """Whether a record of these facts is to go."""
        return (
            id in self.completions
            or completion_id in self.completions
            or key_id in self.keys
            or conversation in self.conversations
        )

    def note(self, id: str, conversation: str | None) -> None:
        """A completion that goes takes its feedback and the copies of its text along."""
        self.completions.add(id)
        if conversation is not None:
            self.prompts.add(conversation)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How much went, by where it was."""

    stream: int
    archive: int
    quarantine: int
    draws: int
    examples: int


def forget(
    redis_settings: RedisSettings, archive: Archive, *, draws_dir: Path, runs_dir: Path, wanted: Wanted
) -> Forgotten:
    """Delete all that is wanted. Killed or failed at any point, the same call again deletes the rest.

    Raises:
        DataError: A file cannot be read or written.
        NightError: Redis does not answer, or another process holds the archive.
    """
    wanted.prompts |= wanted.conversations
    stream = stream_key(redis_settings.key_prefix)
    try:
        with (
            writing(archive) as writer,
            redis.Redis.from_url(redis_settings.url, **connection_options(redis_settings)) as client,
        ):
            _look_at_stream(client, stream, wanted)
            _look_at_archive(archive, wanted)
            # Copies first, completions last: by them a repetition finds what else is to go.
            draws = _from_lines(draws_dir.glob("*.jsonl"), lambda line: _draw_key(line) in wanted.prompts)
            examples = _from_lines(_curated(runs_dir), lambda line: _is_example_of(line, wanted))
            quarantined = _from_quarantine(archive.folder, wanted)
            rows = _from_archive(archive, writer, wanted, "feedback") + _from_archive(
                archive, writer, wanted, "completion"
            )
            entries = _from_stream(client, stream, wanted)
    except redis.RedisError as error:
        raise NightError(f"not all is forgotten: Redis said {type(error).__name__}; run it again later") from error
    log.info("forgotten", stream=entries, archive=rows, quarantine=quarantined, draws=draws, examples=examples)
    return Forgotten(entries, rows, quarantined, draws, examples)


def _look_at_stream(client: redis.Redis, stream: str, wanted: Wanted) -> None:
    for _, record in _entries(client, stream):
        if isinstance(record, CompletionRecord) and wanted.meets(record.id, record.key_id, _conversation(record)):
            wanted.note(record.id, _conversation(record))


def _look_at_archive(archive: Archive, wanted: Wanted) -> None:
    for path in archive.parts():
        for row in _facts(path):
            if row["kind"] == "completion" and wanted.meets(row["id"], row["key_id"], row["conversation_key"]):
                wanted.note(row["id"], row["conversation_key"])


def _from_stream(client: redis.Redis, stream: str, wanted: Wanted) -> int:
    going: dict[bool, list[bytes]] = {False: [], True: []}  # feedback, completions
    for entry_id, record in _entries(client, stream):
        if isinstance(record, CompletionRecord):
            goes = record.id in wanted.completions
        else:
            goes = record is not None and wanted.meets(record.id, record.key_id, None, record.completion_id)
        if goes:
            going[isinstance(record, CompletionRecord)].append(entry_id)
    ids = going[False] + going[True]
    for start in range(0, len(ids), _BATCH):
        client.xdel(stream, *ids[start : start + _BATCH])
    return len(ids)


def _from_archive(archive: Archive, writer: ArchiveWriter, wanted: Wanted, kind: str) -> int:
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


def _from_quarantine(folder: Path, wanted: Wanted) -> int:
    """What no version can read is looked through for the ids as they stand."""
    sought = [f'"{name}"'.encode() for name in wanted.completions | wanted.keys]
    gone = 0
    for path in sorted(folder.glob("_quarantine/*.json")):
        with readable(path):
            content = path.read_bytes()
        if any(name in content for name in sought):
            path.unlink()
            gone += 1
    return gone


def _from_lines(paths: Iterable[Path], goes: Callable[[dict[str, Any]], bool]) -> int:
    gone = 0
    for path in sorted(paths):
        lines = whole_lines(path)
        try:
            kept = [line for line in lines if not goes(orjson.loads(line))]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(f"{path} holds a line that this version cannot read: mend it or remove the file") from error
        if len(kept) < len(lines):
            write_atomically(path, b"".join(line + b"\n" for line in kept))
            gone += len(lines) - len(kept)
    return gone


def _curated(runs_dir: Path) -> list[Path]:
    return [path for name in ("examples.jsonl", "held_out.jsonl") for path in runs_dir.glob(f"*/{name}")]


def _is_example_of(line: dict[str, Any], wanted: Wanted) -> bool:
    return line["key"] in wanted.prompts or line.get("record_id") in wanted.completions


def _draw_key(line: dict[str, Any]) -> str:
    turns = line.get("turns")
    return conversation_key(turns if turns is not None else [{"role": "user", "content": line["prompt"]}])


def _entries(client: redis.Redis, stream: str) -> Iterator[tuple[bytes, Record | None]]:
    """Every entry of the stream; None for a record that cannot be read."""
    after = "-"
    while entries := client.xrange(stream, min=after, count=_BATCH):
        found: list[tuple[bytes, dict[bytes, bytes]]] = cast("Any", entries)
        for entry_id, fields in found:
            try:
                yield entry_id, decode(fields[b"data"])
            except (JournalError, KeyError):
                yield entry_id, None
        after = f"({found[-1][0].decode()}"


def _conversation(record: CompletionRecord) -> str | None:
    return None if record.messages is None else conversation_key(record.messages)


def _facts(path: Path) -> list[dict[str, Any]]:
    with open_part(path) as part, readable(path):
        rows: list[dict[str, Any]] = part.read(columns=_COLUMNS).to_pylist()
    return rows


def _without_kind(row: dict[str, Any]) -> dict[str, Any]:
    names = {"id": "id", "key_id": "key_id", "conversation_key": "conversation", "completion_id": "completion_id"}
    return {name: row[column] for column, name in names.items()}
