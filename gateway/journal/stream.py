"""The journal's stream in Redis: its key, its entries, and readers without a consumer group.

A consumer group holds back the night's trimming (``JournalReader.trim``) for as long as the group exists, whether it
is read or not: a reader that is stopped for a week would fill Redis. A reader without a group remembers the id of its
last entry itself; entries that were trimmed before it read them are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis as sync_redis

from gateway.errors import JournalError
from gateway.journal.record import Record, decode
from gateway.redis_client import REDIS_ERRORS, connect
from gateway.settings import RedisSettings

START = "0-0"
_PAGE_ENTRIES = 500

EntryOrder = tuple[int, int]
RawEntry = tuple[bytes, dict[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry: its id in the stream, the record's id, and the record's bytes."""

    entry_id: str
    record_id: str
    data: bytes

    @property
    def order(self) -> EntryOrder:
        return entry_order(self.entry_id)

    def record(self) -> Record:
        """Decode the record; raise JournalError if the bytes are not one."""
        return decode(self.data)


class StreamTail:
    """Reads the stream from an entry on.

    Args:
        redis: Connection settings.
        batch_records: Most entries of one ``read``.
    """

    def __init__(self, redis: RedisSettings, *, batch_records: int = 256) -> None:
        self._stream = stream_key(redis.key_prefix)
        self._batch_records = batch_records
        self._redis = connect(redis, protocol=2)

    async def read(self, after: str) -> list[StreamEntry]:
        """Return the next entries after an entry id; an empty list when there are none now.

        Raises:
            JournalError: Redis does not answer.
        """
        try:
            reply: Any = await self._redis.xread({self._stream: after}, count=self._batch_records)
        except REDIS_ERRORS as error:
            raise unreadable(error) from error
        return parse_entries(entry for _, entries in reply for entry in entries)

    async def aclose(self) -> None:
        await self._redis.aclose()


def stream_key(key_prefix: str) -> str:
    return f"{key_prefix}:journal"


def read_entries(client: sync_redis.Redis, stream: str, after: str = START) -> Iterator[StreamEntry]:
    """Yield every entry after an entry id, page by page, over a blocking client."""
    while entries := parse_entries(_page(client, stream, after)):
        yield from entries
        after = entries[-1].entry_id


def parse_entries(raw: Iterable[RawEntry]) -> list[StreamEntry]:
    return [
        StreamEntry(entry_id.decode(), fields.get(b"id", b"").decode("utf-8", "replace"), fields.get(b"data", b""))
        for entry_id, fields in raw
    ]


def entry_order(entry_id: bytes | str) -> EntryOrder:
    """Return the sort key of an entry id: later entries compare greater."""
    milliseconds, _, sequence = (entry_id.decode() if isinstance(entry_id, bytes) else entry_id).partition("-")
    return int(milliseconds), int(sequence)


def entry_id_at(moment: datetime) -> str:
    """Return the entry id before all entries that were added after a moment, by Redis's clock."""
    return f"{max(0, int(moment.timestamp() * 1000))}-0"


def unreadable(error: Exception) -> JournalError:
    return JournalError(f"the journal's stream cannot be read: Redis said {type(error).__name__}")


def _page(client: sync_redis.Redis, stream: str, after: str) -> list[RawEntry]:
    found: Any = client.xrange(stream, min=f"({after}", count=_PAGE_ENTRIES)
    return list(found)
