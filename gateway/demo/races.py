"""Reads the races of this run back from the Redis stream, without taking them from the night that consumes it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import redis

from gateway.errors import JournalError
from gateway.journal.record import CompletionRecord
from gateway.journal.stream import START, read_entries, stream_key
from gateway.settings import RedisSettings

_FIND_TIMEOUT_S = 30.0
_POLL_S = 0.02


class RaceLog:
    """The stream from where it ended when this was opened; a context manager."""

    def __init__(self, redis_url: str) -> None:
        self.key = stream_key(RedisSettings().key_prefix)
        self._redis = redis.Redis.from_url(redis_url)
        newest: Any = self._redis.xrevrange(self.key, count=1)
        self._after = newest[0][0].decode() if newest else START

    def read(self) -> list[CompletionRecord]:
        """The races since, oldest first; one that Redis was handed twice counts once."""
        entries = read_entries(self._redis, self.key, self._after)
        records = {entry.record_id: entry.record() for entry in entries}
        return [record for record in records.values() if isinstance(record, CompletionRecord)]

    def find(self, race_id: str) -> CompletionRecord:
        """The race of one answer, as soon as Redis has it.

        Raises:
            JournalError: It did not come.
        """
        deadline = time.monotonic() + _FIND_TIMEOUT_S
        while time.monotonic() < deadline:
            for record in self.read():
                if record.id == race_id:
                    return record
            time.sleep(_POLL_S)
        raise JournalError(f"the race of {race_id} did not reach Redis within {_FIND_TIMEOUT_S:g} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._redis.close()
