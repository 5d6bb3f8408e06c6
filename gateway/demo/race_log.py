"""Read the demo's races back from the Redis stream, without a consumer group: the night still gets all of them."""

from __future__ import annotations

import time
from typing import Any, Self

import redis

from gateway.errors import JournalError
from gateway.journal.record import CompletionRecord
from gateway.journal.stream import START, read_entries, stream_key
from gateway.settings import RedisSettings

_FIND_TIMEOUT_S = 30.0
_POLL_S = 0.02


class RaceLog:
    """The stream's races since this object was made; a context manager."""

    def __init__(self, redis_url: str) -> None:
        self.key = stream_key(RedisSettings().key_prefix)
        self._redis = redis.Redis.from_url(redis_url)
        newest: Any = self._redis.xrevrange(self.key, count=1)
        self._after = newest[0][0].decode() if newest else START

    def read(self) -> list[CompletionRecord]:
        """Return the races, oldest first; a race that is in the stream twice counts once."""
        records = {entry.record_id: entry.record() for entry in read_entries(self._redis, self.key, self._after)}
        return [record for record in records.values() if isinstance(record, CompletionRecord)]

    def wait_for(self, race_id: str) -> CompletionRecord:
        """Wait until Redis has a race; return it.

        Raises:
            JournalError: It did not arrive in time.
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

    def __exit__(self, *_: object) -> None:
        self._redis.close()
