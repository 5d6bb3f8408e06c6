"""Records that have arrived in the journal's stream, by id, to compare with the answers that clients got."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Set

from gateway.errors import JournalError
from gateway.journal.stream import START, StreamTail
from gateway.redis_client import connect
from gateway.settings import RedisSettings

_POLL_S = 0.2
_PAGE_ENTRIES = 500


class StreamRecords:
    """Follow the stream over a connection of its own, and remember what a wiped Redis held.

    Attributes:
        present: Ids that the stream holds, as far as it was read.
        wiped: Ids that it held when its data was deleted.
        duplicates: Entries whose id was there before: the journal promises at least once.
    """

    def __init__(self, url: str, key_prefix: str = "ratchet") -> None:
        self.present: set[str] = set()
        self.wiped: set[str] = set()
        self.duplicates = 0
        self._last = START
        self._settings = RedisSettings(url=url, key_prefix=key_prefix, timeout_s=5.0)
        self._tail = StreamTail(self._settings, batch_records=_PAGE_ENTRIES)

    async def read(self) -> None:
        """Read the new entries.

        Raises:
            JournalError: Redis does not answer.
        """
        while entries := await self._tail.read(self._last):
            for entry in entries:
                self.duplicates += entry.record_id in self.present
                self.present.add(entry.record_id)
            self._last = entries[-1].entry_id

    async def note_wipe(self) -> None:
        """Remember what Redis holds before its data is deleted, and block writes until Redis ends."""
        async with contextlib.aclosing(connect(self._settings)) as redis:
            await redis.client_pause(60_000, all=False)
        await self.read()
        self.wiped |= self.present
        self.present = set()
        self._last = START

    async def wait_for(self, wanted: Set[str], timeout_s: float) -> float | None:
        """Wait until each id is present or wiped; return the seconds that took, or None after the timeout."""
        started_s = time.monotonic()
        while True:
            with contextlib.suppress(JournalError):  # Redis may still be away: that is the fault
                await self.read()
            waited_s = time.monotonic() - started_s
            if not self.missing(wanted):
                return waited_s
            if waited_s > timeout_s:
                return None
            await asyncio.sleep(_POLL_S)

    def missing(self, wanted: Set[str]) -> set[str]:
        """Return the ids that are neither in the stream nor wiped."""
        return set(wanted) - self.present - self.wiped

    async def aclose(self) -> None:
        await self._tail.aclose()
