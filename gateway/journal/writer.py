"""The journal's front: append a record, and it is durable when the call returns.

One thread writes. Whatever is waiting when it comes round goes to disk in one write and one fsync (group commit), so
the cost of durability is shared by the requests that end at the same time, and the event loop never touches the disk.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gateway.errors import JournalError
from gateway.journal.claim import Claim
from gateway.journal.record import Record, encode
from gateway.journal.redaction import Redaction, load_redaction
from gateway.journal.shipper import JournalStats, Shipper
from gateway.journal.spool import SEGMENT_BYTES, Position, SegmentWriter, pack
from gateway.settings import JournalSettings, RedisSettings
from gateway.types import Readiness

_COMMIT_BYTES = 8 * 1024 * 1024
_PROBLEMS = {
    "StreamFull": "the stream in Redis is full until the night collects",
    "OutOfMemoryError": "Redis is out of memory until the night collects",
    "UnsupportedRedis": "this Redis is a Cluster's or a Sentinel, which is not supported",
}

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One record on its way to disk, and the caller who waits for it."""

    record_id: bytes
    data: bytes
    durable: asyncio.Future[bool]


class Journal:
    """Takes records. One per worker process; several processes share a spool.

    ``append`` returns True when the record is on local disk (``fsync``: it survives a power cut; ``relaxed``: it
    survives the death of this process). Redis gets it soon after, in the background; Redis being down, slow, full or
    empty neither fails nor delays an append. If the *disk* refuses (full, broken), ``append`` returns False at once:
    the record is then sent to Redis from memory, without a promise, and counted as lost if that fails too
    (``stats.lost_records``). The caller is to be answered all the same. ``append`` never raises for either.

    Once Redis has acknowledged a record the spool forgets it. Where Redis keeps an append-only file the
    acknowledgement means that file, so a crash of Redis loses nothing; where it keeps none (``stats.aof`` is False)
    the record is only in its memory, and lost with it.

    Args:
        settings: Where the spool is and how durable an append is.
        redis: Where the stream is.
        sync: How a file's data is made durable; tests count or break it.
        segment_bytes: Size of a segment file.

    Raises:
        SettingsError: The redaction that the settings name does not exist.
    """

    def __init__(
        self,
        settings: JournalSettings,
        redis: RedisSettings,
        *,
        sync: Callable[[int], None] = os.fdatasync,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.stats = JournalStats()
        self._settings = settings
        self._redis = redis
        self._sync = sync if settings.durability == "fsync" else None
        self._segment_bytes = segment_bytes
        self._redaction = (
            Redaction(load_redaction(settings.redact), timeout_s=settings.redact_timeout_s) if settings.redact else None
        )
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._disk_failing = False
        self._shipper: Shipper
        self._shipping: asyncio.Task[None]
        self._thread: threading.Thread

    async def start(self) -> None:
        """Take a folder in the spool and begin to ship, what earlier processes left included. Redis may be away.

        Raises:
            JournalError: The spool's folder cannot be written.
        """
        try:
            claim = await asyncio.to_thread(Claim.new, self._settings.spool_dir)
        except OSError as error:
            raise JournalError(f"the spool {self._settings.spool_dir} cannot be written: {error.strerror}") from error
        self._shipper = await asyncio.to_thread(Shipper, claim, self._redis, stats=self.stats)
        self._loop = asyncio.get_running_loop()
        self._shipping = asyncio.create_task(self._shipper.run(), name="journal-shipper")
        self._shipping.add_done_callback(self._shipper_ended)
        segments = SegmentWriter(claim.folder, sync=self._sync, segment_bytes=self._segment_bytes)
        self._thread = threading.Thread(
            target=self._commit_all, args=(segments, self._loop), name="journal-writer", daemon=True
        )
        self._thread.start()

    async def append(self, record: Record) -> bool:
        """Make the record durable. A cancelled call may or may not have been written.

        Returns:
            Whether it is durable (see the class).

        Raises:
            JournalError: The journal is not running.
        """
        if self._loop is None:
            raise JournalError("the journal is not running")
        if self._redaction is not None:
            record = await self._redaction.applied(record)
            if self._loop is None:
                raise JournalError("the journal is not running")
        entry = _Entry(record.id.encode("utf-8", "replace"), encode(record), self._loop.create_future())
        self._queue.put(entry)
        return await entry.durable

    async def drained(self, timeout_s: float) -> bool:
        """Wait until Redis has everything appended so far; False if it has not within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._shipper.wait_idle()
        except TimeoutError:
            return False
        return True

    async def readiness(self) -> Readiness:
        """Ready while it runs, whatever Redis does: taking every gateway away would not bring Redis back."""
        stats = self.stats
        details = []
        if stats.last_error is not None:
            words = _PROBLEMS.get(stats.last_error, "Redis takes no records")
            details.append(f"{words} ({stats.last_error})")
        if stats.lag_bytes > self._settings.max_spool_bytes:
            details.append(f"the spool holds {stats.lag_bytes} bytes, over its limit")
        if self._disk_failing:
            details.append("the spool's disk refuses records")
        if self._redaction is not None and self._redaction.failures:
            details.append(f"{self._redaction.failures} records are without content, for their redaction failed")
        facts = {
            "connected": stats.connected,
            "lag_records": stats.lag_records,
            "lag_bytes": stats.lag_bytes,
            "stream_records": stats.stream_records,
            "stream_full": stats.full,
        }
        if self._loop is None:
            return Readiness(ready=False, detail="the journal is not running", facts=facts)
        return Readiness(ready=True, detail="; ".join(details), facts=facts)

    async def aclose(self, drain_s: float = 5.0) -> None:
        """Flush to disk, give Redis a last moment if it answers, and let go of the spool."""
        if self._loop is None:
            return
        self._loop = None
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        if self.stats.last_error is None:
            await self.drained(drain_s)
        self._shipper.stop()
        self._shipping.cancel()
        await asyncio.gather(self._shipping, return_exceptions=True)
        await self._shipper.close()
        if self._redaction is not None:
            self._redaction.close()

    def _commit_all(self, segments: SegmentWriter, loop: asyncio.AbstractEventLoop) -> None:
        """The thread: commit whatever waits, group by group, until None comes."""
        while self._commit(segments, loop):
            pass
        segments.close()

    def _commit(self, segments: SegmentWriter, loop: asyncio.AbstractEventLoop) -> bool:
        """Wait for a group and commit it; False once the journal closes.

        Between groups the thread is idle in here and knows none: a large one would stay in memory until the next.
        """
        group, running = self._next_group()
        if group:
            frames = b"".join([pack(entry.record_id, entry.data) for entry in group])
            try:
                end = segments.write(frames)
            except OSError as error:
                loop.call_soon_threadsafe(self._refused, group, error)
            else:
                loop.call_soon_threadsafe(self._committed, group, end, len(frames))
        return running

    def _next_group(self) -> tuple[list[_Entry], bool]:
        """Wait for an entry and take all that wait with it; False once the journal closes."""
        group: list[_Entry] = []
        n_bytes = 0
        entry = self._queue.get()
        while entry is not None:
            group.append(entry)
            n_bytes += len(entry.data)
            if n_bytes >= _COMMIT_BYTES:
                break
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                break
        return group, entry is not None

    def _committed(self, group: list[_Entry], end: Position, n_bytes: int) -> None:
        """The group is durable (on the event loop again)."""
        self._disk_failing = False
        self.stats.commits += 1
        self.stats.appended_records += len(group)
        self.stats.lag_records += len(group)
        self.stats.lag_bytes += n_bytes
        self._shipper.advance(end)
        for entry in group:
            if not entry.durable.done():  # its caller may have been cancelled
                entry.durable.set_result(True)

    def _refused(self, group: list[_Entry], error: OSError) -> None:
        """The disk took none of the group (on the event loop again)."""
        if not self._disk_failing:
            log.error("spool_refuses_records", error=type(error).__name__, errno=error.errno)
        self._disk_failing = True
        lost = [entry for entry in group if not self._shipper.send_directly(entry.record_id, entry.data)]
        if lost:
            self.stats.lost_records += len(lost)
            log.error("records_lost", count=len(lost), records=[entry.record_id.decode() for entry in lost])
        for entry in group:
            if not entry.durable.done():
                entry.durable.set_result(False)

    def _shipper_ended(self, task: asyncio.Task[None]) -> None:
        """It only ends when it is cancelled; anything else is a mistake that must not go unseen."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stats.last_error, self.stats.connected = type(error).__name__, False
            log.critical("journal_shipper_died", exc_info=error)
