"""The journal's front: append a record, and it is durable when the call returns."""

from __future__ import annotations

from gateway.journal.record import Record
from gateway.settings import JournalSettings, RedisSettings
from gateway.types import Readiness


class Journal:
    """Takes records. One per worker process.

    ``append`` returns True when the record is on local disk (``fsync`` mode) or with the kernel (``relaxed`` mode).
    It never raises for what disk or Redis do: False says that the disk refused the record, which was handed to Redis
    directly or lost (``stats.lost_records``); answer the caller all the same.

    Interface: ``await start()``, ``await append(record) -> bool``, ``await drained(timeout_s) -> bool``,
    ``await readiness() -> Readiness``, ``stats``, ``await aclose()``.
    """

    def __init__(self, settings: JournalSettings, redis: RedisSettings) -> None: ...

    async def start(self) -> None:
        """Take a folder in the spool and begin to ship."""
        raise NotImplementedError

    async def append(self, record: Record) -> bool:
        """Make the record durable."""
        raise NotImplementedError

    async def drained(self, timeout_s: float) -> bool:
        """Wait until Redis has acknowledged everything appended so far; False if it did not in time."""
        raise NotImplementedError

    async def readiness(self) -> Readiness:
        """Always ready once started; the detail says what is degraded."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Flush."""
        raise NotImplementedError
