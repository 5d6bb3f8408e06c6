"""Append records to the journal; a record is durable when ``append`` returns.

One thread writes all records that wait in one write and one fsync (group commit). So requests that end at the same time
share the cost of durability, and the event loop never touches the disk.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from gateway import spans
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
    record_id: bytes
    data: bytes
    durable: asyncio.Future[bool]  # its caller waits for this


class Journal:
    """The journal of one worker process; several processes share a spool.

    ``append`` returns True when the record is on local disk (``fsync``: it survives a power cut; ``relaxed``: it
    survives the end of this process). It is sent to Redis in the background; a Redis that is down, slow, full or empty
    neither fails nor delays an append. If the *disk* refuses (full, broken), ``append`` returns False at once: the
    record is then sent to Redis from memory, if possible, and otherwise counted in ``stats.lost_records``. Neither
    raises an error, and the caller gets the answer in both cases.

    The spool deletes a record once Redis has acknowledged it. With an append-only file in Redis the acknowledgement
    covers that file, so a crash of Redis loses nothing; without one the record is only in Redis's memory, and lost
    with it.

    Args:
        settings: The spool's folder, the durability of an append, the redaction (SettingsError if it is missing).
        redis: Connection settings.
        sync: Makes a file's data durable; tests count its calls or break it.
        segment_bytes: Size of a segment file.
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
        """Claim a folder in the spool and start to ship, also what earlier processes left. Redis may be down.

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
        """Make the record durable; return True if it is (see the class). A cancelled call may have written it.

        Raises:
            JournalError: The journal is not running.
        """
        with spans.span("journal write", lambda: {"ratchet.record.id": record.id, "ratchet.record.kind": record.kind}):
            if self._redaction is not None and self._loop is not None:
                record = await self._redaction.apply(record)
            if self._loop is None:
                raise JournalError("the journal is not running")
            entry = _Entry(record.id.encode("utf-8", "replace"), encode(record), self._loop.create_future())
            self._queue.put(entry)
            durable = await entry.durable
            spans.record(lambda: {"ratchet.record.durable": durable})
            return durable

    async def drained(self, timeout_s: float) -> bool:
        """Wait until Redis has every appended record; return False after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._shipper.wait_idle()
        except TimeoutError:
            return False
        return True

    async def readiness(self) -> Readiness:
        """Return ready while the journal runs, also without Redis: stopping every gateway would not help Redis."""
        stats = self.stats
        details = []
        if stats.last_error is not None:
            problem = _PROBLEMS.get(stats.last_error, "Redis takes no records")
            details.append(f"{problem} ({stats.last_error})")
        if stats.lag_bytes > self._settings.max_spool_bytes:
            details.append(f"the spool holds {stats.lag_bytes} bytes, over its limit")
        if self._disk_failing:
            details.append("the spool's disk refuses records")
        if self._redaction is not None and self._redaction.failures:
            details.append(f"{self._redaction.failures} records are without content because their redaction failed")
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
        """Flush to disk, wait up to ``drain_s`` for Redis if it answers, and release the spool."""
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
        """Commit the queue group by group, in the writer thread, until the journal closes."""
        while self._commit(segments, loop):
            pass
        segments.close()

    def _commit(self, segments: SegmentWriter, loop: asyncio.AbstractEventLoop) -> bool:
        """Wait for a group and commit it; return False once the journal closes.

        A function of its own, so that no local variable keeps a large group in memory while the thread waits.
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
        """Wait for an entry and return it with all others that wait; False once the journal closes."""
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
        """Count the durable group and wake its callers, on the event loop."""
        self._disk_failing = False
        self.stats.commits += 1
        self.stats.appended_records += len(group)
        self.stats.lag_records += len(group)
        self.stats.lag_bytes += n_bytes
        self._shipper.advance(end)
        for entry in group:
            if not entry.durable.done():  # done if its caller was cancelled
                entry.durable.set_result(True)

    def _refused(self, group: list[_Entry], error: OSError) -> None:
        """Send the group from memory because the disk refused it, and wake its callers, on the event loop."""
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
        """Log the end of the shipper's task: only a cancellation is expected."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stats.last_error, self.stats.connected = type(error).__name__, False
            log.critical("journal_shipper_died", exc_info=error)
