"""Reads the journal's stream from a place on, without a consumer group.

A group holds back the night's trimming (``JournalReader.trim``) for as long as it exists, read or not, and a guard
that is stopped for a week must not fill Redis. The guard needs no group: it remembers the place itself, in the file
that holds its counts. What was trimmed before it came by is missing from both policies alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from gateway.errors import JournalError
from gateway.journal.stream import stream_key
from gateway.redis_client import REDIS_ERRORS, connect
from gateway.settings import RedisSettings

START = "0-0"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its place, and the record's bytes."""

    place: str
    data: bytes


class Tail:
    """The stream from a place on.

    Args:
        redis: Where the stream is.
        batch_records: Most entries of one ``read``.
    """

    def __init__(self, redis: RedisSettings, *, batch_records: int = 256) -> None:
        self._stream = stream_key(redis.key_prefix)
        self._batch_records = batch_records
        self._redis: Redis = connect(redis, protocol=2)

    async def read(self, after: str) -> list[Entry]:
        """The next entries after a place; none if there are none now.

        Raises:
            JournalError: Redis does not answer.
        """
        try:
            reply: Any = await self._redis.xread({self._stream: after}, count=self._batch_records)
        except REDIS_ERRORS as error:
            raise JournalError(f"the journal's stream cannot be read: Redis said {type(error).__name__}") from error
        return [Entry(place.decode(), fields.get(b"data", b"")) for _, entries in reply for place, fields in entries]

    async def aclose(self) -> None:
        """Close the connection."""
        await self._redis.aclose()


def place_at(moment: datetime) -> str:
    """The place before what came after ``moment``: Redis numbers entries by its clock."""
    return f"{max(0, int(moment.timestamp() * 1000))}-0"


def later(one: str, other: str) -> str:
    """The later of two places."""
    return max(one, other, key=lambda place: tuple(map(int, place.split("-"))))
