"""Read the journal's stream as a consumer group: a record is delivered until a consumer acknowledges it.

Delivery is at least once: after a crash of a gateway, or a slow reply of Redis, a record is in the stream twice. The
reader drops the second copy while it remembers the first (``window`` ids); code that needs exactly one row per id must
also drop duplicates by id.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from gateway.errors import SettingsError
from gateway.journal import retention
from gateway.journal.retention import HeldBack, Place
from gateway.journal.stream import START, RawEntry, StreamEntry, entry_order, parse_entries, stream_key, unreadable
from gateway.redis_client import REDIS_ERRORS, UnsupportedRedis, connect, refuse_unsupported, run_when_full
from gateway.settings import RedisSettings

_POLL_S = 1.0
_MAKE_GROUP = "return redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0-0', 'MKSTREAM')"

log = structlog.get_logger()


class JournalReader:
    """One consumer of a group. Every method raises ``JournalError`` when Redis does not answer.

    Args:
        redis: Connection settings.
        group: Name of the group. Its consumers share the records; every group gets all of them.
        consumer: This consumer's name. After a restart under the same name it gets what it had not acknowledged.
        batch_records: Most records of one ``read``.
        claim_idle_s: A record that a consumer has not acknowledged for so long is delivered to another one.
        window: Number of record ids remembered to drop duplicates.
    """

    def __init__(
        self,
        redis: RedisSettings,
        *,
        group: str,
        consumer: str,
        batch_records: int = 256,
        claim_idle_s: float = 60.0,
        window: int = 100_000,
    ) -> None:
        self.duplicates = 0
        self.delivered = 0  # new entries, second copies included
        self.lost_pending = 0  # entries that left the stream between their delivery and their acknowledgement
        self._stream = stream_key(redis.key_prefix)
        self._group = group
        self._consumer = consumer
        self._batch_records = batch_records
        self._claim_idle_ms = int(claim_idle_s * 1000)
        self._window = window
        self._seen: OrderedDict[str, str] = OrderedDict()  # record id → the entry that brought it first
        self._backlog_after: str | None = START  # own entries of an earlier run; None once all are read
        self._claim_from = START
        self._block_s = min(_POLL_S, redis.timeout_s / 2)
        self._redis: Redis = connect(redis, protocol=2)

    async def start(self) -> None:
        """Create the group, from the start of the stream, if it does not exist.

        Raises:
            SettingsError: The server is a Redis Cluster or a Sentinel.
        """
        async with _journal_errors():
            try:
                await refuse_unsupported(self._redis)
            except UnsupportedRedis as error:
                raise SettingsError(str(error)) from error
            await self._make_group()

    async def read(self, *, wait_s: float = 0.0) -> list[StreamEntry]:
        """Return the next records: this consumer's unacknowledged ones, then dead consumers', then new ones.

        Returns:
            At most ``batch_records``; an empty list if none came within ``wait_s``.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            left_s = deadline - loop.time()
            async with _journal_errors():
                raw = await self._backlog() or await self._claimed() or await self._new(min(left_s, self._block_s))
                entries = await self._unseen(raw)
            if entries or (not raw and left_s <= 0):
                return entries

    async def newest(self) -> tuple[int, int]:
        """Return the newest entry's sort key (``StreamEntry.order``), also if that entry is gone."""
        async with _journal_errors():
            return entry_order((await self._redis.xinfo_stream(self._stream))["last-generated-id"])

    async def ack(self, entry_ids: Sequence[str]) -> None:
        """Acknowledge entries that are safe elsewhere; they are not delivered to this group again."""
        if entry_ids:
            async with _journal_errors():
                await self._redis.xack(self._stream, self._group, *entry_ids)

    async def trim(self) -> int:
        async with _journal_errors():
            return await retention.trim_acknowledged(self._redis, self._stream)

    async def drop_before(self, time_ms: int) -> int:
        """Remove the entries added before a time by Redis's clock, acknowledged or not; return how many."""
        async with _journal_errors():
            return await retention.trim_before(self._redis, self._stream, f"{time_ms}-0")

    async def place(self) -> Place:
        async with _journal_errors():
            return await retention.place_of(self._redis, self._stream, self._group)

    async def lost_since(self, start: Place) -> int:
        """Return how many entries left the stream unread since a place; correct Redis's count of read entries.

        Args:
            start: The group's place before this reader's first ``read``.
        """
        async with _journal_errors():
            place = await retention.place_of(self._redis, self._stream, self._group)
            read = place.read_now(start, self.delivered)
            if read is not None and read != place.read:
                await self._redis.xgroup_setid(self._stream, self._group, place.delivered, entries_read=read)
            return place.lost_since(start, self.delivered) + self.lost_pending

    async def full(self, max_records: int) -> bool:
        async with _journal_errors():
            return await retention.is_full(self._redis, self._stream, max_records)

    async def held_back(self) -> list[HeldBack]:
        async with _journal_errors():
            return await retention.held_back(self._redis, self._stream, self._group)

    async def consumers(self) -> dict[str, float]:
        """Return the group's other consumers, each with the seconds since it was last seen."""
        async with _journal_errors():
            found = await self._redis.xinfo_consumers(self._stream, self._group)
        idle_s = {each["name"].decode("utf-8", "replace"): each["idle"] / 1000 for each in found}
        return {name: seconds for name, seconds in idle_s.items() if name != self._consumer}

    async def clock_ms(self) -> int:
        """Return the time by Redis's clock, in milliseconds since the epoch."""
        async with _journal_errors():
            seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _make_group(self) -> None:
        try:
            try:
                await self._redis.xgroup_create(self._stream, self._group, id=START, mkstream=True)
            except OutOfMemoryError:  # reading will free memory
                await run_when_full(self._redis, _MAKE_GROUP, keys=[self._stream], args=[self._group])
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _backlog(self) -> list[RawEntry]:
        if self._backlog_after is None:
            return []
        entries = await self._read_group(self._backlog_after, block_s=0)
        self._backlog_after = entries[-1][0].decode() if entries else None
        return entries

    async def _claimed(self) -> list[RawEntry]:
        """Return entries of dead consumers. One call scans only a part of them: repeat until it finds some or ends."""
        while True:
            reply = await self._in_group(self._claim)
            self._claim_from = reply[0].decode()
            entries: list[RawEntry] = reply[1]
            self.lost_pending += len(reply[2]) if len(reply) > 2 else 0  # Redis has dropped these from the group
            if entries or self._claim_from == START:
                return entries

    def _claim(self) -> Awaitable[Any]:
        start, count = self._claim_from, self._batch_records
        names = (self._stream, self._group, self._consumer)
        return self._redis.xautoclaim(*names, self._claim_idle_ms, start_id=start, count=count)

    async def _new(self, block_s: float) -> list[RawEntry]:
        entries = await self._read_group(">", block_s=block_s)
        self.delivered += len(entries)
        return entries

    async def _read_group(self, after: str, *, block_s: float) -> list[RawEntry]:
        block_ms = max(1, int(block_s * 1000)) if block_s > 0 else None
        stream: dict[Any, Any] = {self._stream: after}
        reply = await self._in_group(
            lambda: self._redis.xreadgroup(
                self._group, self._consumer, stream, count=self._batch_records, block=block_ms
            )
        )
        return list(reply[0][1]) if reply else []

    async def _in_group(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make the call; create the group again if Redis has lost it in a restart."""
        try:
            return await call()
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
        log.warning("journal_group_lost", group=self._group)
        await self._make_group()
        return await call()

    async def _unseen(self, raw: list[RawEntry]) -> list[StreamEntry]:
        """Return the entries without second copies and trimmed ones, which are acknowledged here."""
        unseen, copies = [], []
        trimmed = [entry_id.decode() for entry_id, fields in raw if not fields]  # before they were acknowledged
        self.lost_pending += len(trimmed)
        for entry in parse_entries((entry_id, fields) for entry_id, fields in raw if fields):
            if entry.record_id and self._seen.setdefault(entry.record_id, entry.entry_id) != entry.entry_id:
                self.duplicates += 1
                copies.append(entry.entry_id)
            else:
                unseen.append(entry)
        while len(self._seen) > self._window:
            self._seen.popitem(last=False)
        if trimmed or copies:
            await self._redis.xack(self._stream, self._group, *trimmed, *copies)
        return unseen


@contextlib.asynccontextmanager
async def _journal_errors() -> AsyncIterator[None]:
    try:
        yield
    except REDIS_ERRORS as error:
        raise unreadable(error) from error
