"""Ship the spool to the Redis stream, in the background and at least once, dead workers' folders included.

A round sends the new records, asks Redis to confirm them, saves the cursors and deletes the segments before them. A
failure ends the round; the next round starts at the cursors again, after a random pause that grows with each failure.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog
from redis.exceptions import OutOfMemoryError, RedisError

from gateway.errors import strip_traceback
from gateway.journal.claim import Claim
from gateway.journal.link import StreamFull, StreamLink
from gateway.journal.spool import Position, SpoolReader
from gateway.redis_client import REDIS_ERRORS
from gateway.settings import RedisSettings

_BATCH_RECORDS = 256
_BATCH_BYTES = 512 * 1024  # packing more at once would delay requests by milliseconds
_ROUND_BATCHES = 32
_LINGER_S = 0.05  # between rounds, so that a steady trickle ships in batches
_ADOPT_S = 30.0
_BACKOFF_S = 0.1
_BACKOFF_MAX_S = 5.0
_DIRECT_BYTES = 64 * 1024 * 1024
_FULL = (StreamFull, OutOfMemoryError)

log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class JournalStats:
    """The journal's counters and states, for telemetry."""

    appended_records: int = 0
    commits: int = 0
    lost_records: int = 0  # neither on disk nor in Redis
    lag_records: int = 0  # on disk and not acknowledged by Redis yet
    lag_bytes: int = 0
    connected: bool = False
    stream_records: int = 0
    stream_share: float = 0.0  # stream_records as a share of the stream's limit
    full: bool = False  # the limit of the stream or of Redis's memory is reached, so records wait on disk
    last_error: str | None = None  # name of the error's class


class _Source:
    """A folder to ship. ``end`` is the position up to which it is durable; None for an orphan, which has no writer."""

    def __init__(self, claim: Claim, end: Position | None) -> None:
        self.claim = claim
        self.end = end
        self.reader = SpoolReader(claim.folder)

    def is_shipped(self) -> bool:
        self.reader.rewind()
        return not self.reader.read(max_records=1, max_bytes=1, end=None)

    def close(self) -> None:
        """Delete the folder if Redis has all of it; otherwise leave it for the next process."""
        if self.is_shipped():
            self.claim.remove()
        else:
            self.claim.release()


class Shipper:
    """Ships this worker's folder and every orphan's. Runs on the event loop; a thread reads the files.

    Args:
        claim: This worker's own folder.
        redis: Connection settings.
        stats: Kept up to date here.
    """

    def __init__(self, claim: Claim, redis: RedisSettings, *, stats: JournalStats) -> None:
        self._own = _Source(claim, Position(0, 0))
        self._orphans: list[_Source] = []
        self._direct: deque[tuple[bytes, bytes]] = deque()
        self._direct_bytes = 0
        self._spool_dir: Path = claim.folder.parent
        self._stats = stats
        self._link = StreamLink(redis)
        # One thread: the call of a cancelled round ends before the next round begins.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-shipper")
        self._news = asyncio.Event()
        self._progress = asyncio.Condition()
        self._next_adoption_s = 0.0
        self._stopping = False
        self._failures = 0

    def advance(self, end: Position) -> None:
        """Ship the worker's folder up to ``end``, where it is durable."""
        self._own.end = end
        self._news.set()

    def send_directly(self, record_id: bytes, data: bytes) -> bool:
        """Queue a record that the disk refused; return False if the queue is full."""
        if self._direct_bytes + len(data) > _DIRECT_BYTES:
            return False
        self._direct.append((record_id, data))
        self._direct_bytes += len(data)
        self._news.set()
        return True

    @property
    def idle(self) -> bool:
        return self._next_adoption_s > 0 and not self._stats.lag_records and not self._direct

    async def wait_idle(self) -> None:
        async with self._progress:
            await self._progress.wait_for(lambda: self.idle)

    def stop(self) -> None:
        """End ``run`` after its current round; cancel its task to end it sooner."""
        self._stopping = True
        self._news.set()

    async def run(self) -> None:
        # The client uses asyncio.wait_for, which before Python 3.12 can swallow a cancellation: hence the flag.
        while not self._stopping:
            self._news.clear()
            try:
                await self._adopt()
                await self._link.connect()
                busy = await self._round()
            except REDIS_ERRORS as error:
                # A broken connection keeps its error, whose traceback would keep the records being sent.
                await self._failed(strip_traceback(error))
                continue
            self._recovered()
            async with self._progress:
                self._progress.notify_all()
            if busy:
                await asyncio.sleep(_LINGER_S)
            else:
                await self._wait_for_news()

    async def close(self) -> None:
        """Release the folders. Records that Redis has not taken stay on disk for the next process."""
        await self._link.close()
        self._stats.connected = False
        self._stats.lost_records += len(self._direct)
        if self._direct:
            log.error("records_lost", count=len(self._direct))
        for source in [self._own, *self._orphans]:
            try:
                await self._in_thread(source.close)
            except OSError as error:
                log.error("spool_not_released", folder=source.claim.folder.name, error=type(error).__name__)
        self._thread.shutdown(wait=False)  # idle: the calls above were its last ones

    async def _round(self) -> bool:
        """Send the new records, confirm them and save the cursors; return True if there may be more to send."""
        moved = await self._send_direct()
        refusal = None
        for source in [self._own, *self._orphans]:
            n_sent, refusal = await self._send(source)
            moved += n_sent
            if refusal is not None:
                break
        taken = [source for source in [self._own, *self._orphans] if source.reader.unacknowledged]
        if taken and await self._link.confirm():
            for source in taken:
                await self._acknowledge(source)
        if not moved:
            await self._link.read_length()  # others add and the night trims while this worker sends nothing
        self._stats.stream_records = self._link.n_records
        self._stats.stream_share = self._link.n_records / self._link.max_records
        if refusal is not None:
            raise refusal
        await self._finish_orphans()
        return moved > 0 or any(source.reader.unacknowledged for source in taken)

    async def _send(self, source: _Source) -> tuple[int, RedisError | None]:
        n_sent = 0
        for _ in range(_ROUND_BATCHES):
            try:
                frames = await self._in_thread(
                    source.reader.read, max_records=_BATCH_RECORDS, max_bytes=_BATCH_BYTES, end=source.end
                )
            except OSError as error:  # skip this folder in this round
                log.error("spool_unreadable", folder=source.claim.folder.name, error=type(error).__name__)
                break
            if not frames:
                break
            n_taken, refusal = await self._link.add([(frame.record_id, frame.data) for frame in frames])
            source.reader.advance(frames[:n_taken])
            n_sent += n_taken
            if refusal is not None:
                return n_sent, refusal
        return n_sent, None

    async def _send_direct(self) -> int:
        records = list(self._direct)[:_BATCH_RECORDS]
        if not records:
            return 0
        # The stream's limit does not apply: these records are on no disk and would be lost.
        n_taken, refusal = await self._link.add(records, limited=False)
        for _ in range(n_taken):
            self._direct_bytes -= len(self._direct.popleft()[1])
        if refusal is not None:
            raise refusal
        return n_taken

    async def _acknowledge(self, source: _Source) -> None:
        sizes = list(source.reader.unacknowledged)
        self._stats.lag_records -= len(sizes)
        self._stats.lag_bytes -= sum(sizes)
        try:
            await self._in_thread(source.reader.acknowledge)
        except OSError as error:
            log.error("cursor_not_saved", error=type(error).__name__)

    async def _adopt(self) -> None:
        """Claim the folders of dead workers, every _ADOPT_S seconds."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_adoption_s:
            return
        for claim in await self._in_thread(Claim.orphans, self._spool_dir):
            source = await self._in_thread(_Source, claim, None)
            try:
                n_records, n_bytes = await self._in_thread(source.reader.measure)
            except OSError as error:
                log.error("spool_unreadable", folder=claim.folder.name, error=type(error).__name__)
                claim.release()
                continue
            log.info("spool_adopted", folder=claim.folder.name, records=n_records, bytes=n_bytes)
            self._stats.lag_records += n_records
            self._stats.lag_bytes += n_bytes
            self._orphans.append(source)
        self._next_adoption_s = loop.time() + _ADOPT_S

    async def _finish_orphans(self) -> None:
        for source in list(self._orphans):
            if not source.reader.unacknowledged and await self._in_thread(source.is_shipped):
                self._orphans.remove(source)
                await self._in_thread(source.claim.remove)

    async def _wait_for_news(self) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._next_adoption_s - asyncio.get_running_loop().time())):
                await self._news.wait()
        except TimeoutError:
            return  # time to look for orphans

    async def _failed(self, error: Exception) -> None:
        name = type(error).__name__
        if self._stats.last_error != name:
            log.warning("journal_not_shipping", error=name, lag_records=self._stats.lag_records)
        self._stats.last_error = name
        self._stats.full = isinstance(error, _FULL)
        self._stats.connected = self._link.connected
        await self._link.close()
        for source in [self._own, *self._orphans]:
            source.reader.rewind()
        ceiling_s = min(_BACKOFF_MAX_S, _BACKOFF_S * 2 ** min(self._failures, 10))
        self._failures += 1
        await asyncio.sleep(random.uniform(ceiling_s / 2, ceiling_s))

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        # Shielded: a cancellation would drop a call that the thread has not begun, which may save the cursor of
        # confirmed records.
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(self._thread, partial(call, *args, **kwargs))
        )

    def _recovered(self) -> None:
        if self._stats.last_error is not None:
            log.info("journal_shipping_again", lag_records=self._stats.lag_records)
        self._stats.last_error = None
        self._stats.full = False
        self._stats.connected = True
        self._failures = 0
