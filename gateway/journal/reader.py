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
    """One consumer of a group.

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
        self.delivered = 0
        """New entries that were delivered, second copies included."""
        self.lost_pending = 0
        """Entries that left the stream after their delivery and before their acknowledgement."""
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
            JournalError: Redis does not answer.
            SettingsError: The server is a Redis Cluster or a Sentinel.
        """
        async with self._translated():
            try:
                await refuse_unsupported(self._redis)
            except UnsupportedRedis as error:
                raise SettingsError(str(error)) from error
            await self._make_group()

    async def read(self, *, wait_s: float = 0.0) -> list[StreamEntry]:
        """Return the next records: this consumer's unacknowledged ones, then dead consumers', then new ones.

        Args:
            wait_s: Time to wait for a record when there is none.

        Returns:
            At most ``batch_records``; empty if none came in time.

        Raises:
            JournalError: Redis does not answer.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while True:
            left_s = deadline - loop.time()
            async with self._translated():
                entries = await self._backlog() or await self._claimed() or await self._new(min(left_s, self._block_s))
                deliveries = await self._unseen(entries)
            if deliveries or (not entries and left_s <= 0):
                return deliveries

    async def newest(self) -> tuple[int, int]:
        """Return the newest entry's sort key (``StreamEntry.order``), also if that entry is gone.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            return entry_order((await self._redis.xinfo_stream(self._stream))["last-generated-id"])

    async def ack(self, entry_ids: Sequence[str]) -> None:
        """Acknowledge entries that are safe elsewhere; they are not delivered to this group again.

        Raises:
            JournalError: Redis does not answer.
        """
        if entry_ids:
            async with self._translated():
                await self._redis.xack(self._stream, self._group, *entry_ids)

    async def trim(self) -> int:
        """Remove the oldest entries that every group has acknowledged; return how many were removed.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            return await retention.trim_acknowledged(self._redis, self._stream)

    async def drop_before(self, time_ms: int) -> int:
        """Remove the entries added before a time, acknowledged or not; return how many were removed.

        Args:
            time_ms: Milliseconds since the epoch, by Redis's clock.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            return await retention.trim_before(self._redis, self._stream, f"{time_ms}-0")

    async def place(self) -> Place:
        """Return this group's place in the stream.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            return await retention.place_of(self._redis, self._stream, self._group)

    async def lost_since(self, start: Place) -> int:
        """Return how many entries left the stream unread since a place; correct Redis's count of read entries.

        Args:
            start: The group's place before this reader's first ``read``.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            place = await retention.place_of(self._redis, self._stream, self._group)
            read = place.read_now(start, self.delivered)
            if read is not None and read != place.read:
                await self._redis.xgroup_setid(self._stream, self._group, place.delivered, entries_read=read)
            return place.lost_since(start, self.delivered) + self.lost_pending

    async def full(self, max_records: int) -> bool:
        """Return True if the stream is near its limit, or Redis near its memory limit and the stream not nearly empty.

        Args:
            max_records: The stream's limit.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            return await retention.is_full(self._redis, self._stream, max_records)

    async def held_back(self) -> list[HeldBack]:
        """Return the other groups that still need entries which this one has acknowledged.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            return await retention.held_back(self._redis, self._stream, self._group)

    async def consumers(self) -> dict[str, float]:
        """Return the group's other consumers, each with the seconds since it was last seen.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
            found = await self._redis.xinfo_consumers(self._stream, self._group)
        idle_s = {each["name"].decode("utf-8", "replace"): each["idle"] / 1000 for each in found}
        return {name: seconds for name, seconds in idle_s.items() if name != self._consumer}

    async def clock_ms(self) -> int:
        """Return the time by Redis's clock, in milliseconds since the epoch.

        Raises:
            JournalError: Redis does not answer.
        """
        async with self._translated():
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
            reply = await self._in_group(
                lambda: self._redis.xautoclaim(
                    self._stream,
                    self._group,
                    self._consumer,
                    self._claim_idle_ms,
                    start_id=self._claim_from,
                    count=self._batch_records,
                )
            )
            self._claim_from = reply[0].decode()
            entries: list[RawEntry] = reply[1]
            self.lost_pending += len(reply[2]) if len(reply) > 2 else 0  # Redis has dropped these from the group
            if entries or self._claim_from == START:
                return entries

    async def _new(self, block_s: float) -> list[RawEntry]:
        entries = await self._read_group(">", block_s=block_s)
        self.delivered += len(entries)
        return entries

    async def _read_group(self, after: str, *, block_s: float) -> list[RawEntry]:
        reply = await self._in_group(
            lambda: self._redis.xreadgroup(
                self._group,
                self._consumer,
                {self._stream: after},
                count=self._batch_records,
                block=max(1, int(block_s * 1000)) if block_s > 0 else None,
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

    async def _unseen(self, entries: list[RawEntry]) -> list[StreamEntry]:
        """Return the entries without second copies and trimmed ones, which are acknowledged here."""
        deliveries, done = [], []
        for raw_id, found in entries:
            entry_id = raw_id.decode()
            if not found:  # trimmed before it was acknowledged
                self.lost_pending += 1
                done.append(entry_id)
                continue
            (entry,) = parse_entries([(raw_id, found)])
            if entry.record_id and self._seen.setdefault(entry.record_id, entry_id) != entry_id:
                self.duplicates += 1
                done.append(entry_id)
                continue
            deliveries.append(entry)
        while len(self._seen) > self._window:
            self._seen.popitem(last=False)
        if done:
            await self._redis.xack(self._stream, self._group, *done)
        return deliveries

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        try:
            yield
        except REDIS_ERRORS as error:
            raise unreadable(error) from error
