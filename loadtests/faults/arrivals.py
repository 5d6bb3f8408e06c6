"""What has arrived in the journal's stream, by id: the other side of the account."""

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
_PAGE = 500


class Arrivals:
    """Follows the stream, over a connection of its own, and tells what a wiped Redis had.

    Attributes:
        now: Ids that the stream holds, as far as it was read.
        wiped: Ids that it held when its data was thrown away.
        duplicates: Entries whose id was there before: the journal promises at least once.
    """

    def __init__(self, url: str, key_prefix: str = "ratchet") -> None:
        self.now: set[str] = set()
        self.wiped: set[str] = set()
        self.duplicates = 0
        self._last = START
        self._settings = RedisSettings(url=url, key_prefix=key_prefix, timeout_s=5.0)
        self._tail = StreamTail(self._settings, batch_records=_PAGE)

    async def read(self) -> None:
        """Read what is new.

        Raises:
            JournalError: Redis does not answer.
        """
        while entries := await self._tail.read(self._last):
            for entry in entries:
                self.duplicates += entry.record_id in self.now
                self.now.add(entry.record_id)
            self._last = entries[-1].entry_id

    async def last_look(self) -> None:
        """Remember what Redis holds before its data is thrown away; it takes no more writes until it ends."""
        async with contextlib.aclosing(connect(self._settings)) as redis:
            await redis.execute_command("CLIENT", "PAUSE", "60000", "WRITE")  # type: ignore[no-untyped-call]
        await self.read()
        self.wiped |= self.now
        self.now = set()
        self._last = START

    async def all_of(self, wanted: Set[str], timeout_s: float) -> float | None:
        """Wait until the stream holds them (or held them when it was wiped); seconds that took, None when too long."""
        started_s = time.monotonic()
        while True:
            with contextlib.suppress(JournalError):  # it may still be away: that is what this is about
                await self.read()
            waited_s = time.monotonic() - started_s
            if not self.missing(wanted):
                return waited_s
            if waited_s > timeout_s:
                return None
            await asyncio.sleep(_POLL_S)

    def missing(self, wanted: Set[str]) -> set[str]:
        """Those that are nowhere."""
        return set(wanted) - self.now - self.wiped

    async def aclose(self) -> None:
        """Close the connection."""
        await self._tail.aclose()
