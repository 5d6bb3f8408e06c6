"""Collect the journal's stream into the archive: archive records, acknowledge them, then trim them from Redis.

A pass killed at any point is continued by the next one: a record archived but not acknowledged is delivered again, and
found as a duplicate. The consumer is named after the archive, so the next pass gets a killed one's records at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from distill.dataset.archive import Archive
from distill.dataset.archive_writer import Added, ArchiveWriter, writing
from distill.errors import DataError, NightError
from distill.settings import DatasetSettings
from gateway.errors import JournalError
from gateway.journal.reader import JournalReader
from gateway.journal.stream import StreamEntry
from gateway.settings import RedisSettings

GROUP = "night"
CLOCKS_APART = timedelta(hours=1)
"""Largest difference between this machine's clock and Redis's at which records may expire."""
QUIET = timedelta(days=7)
"""Longest time without a record at which the clock is still trusted."""
LOST = "{} records left Redis before they were archived: they are lost"
_POLL_S = 0.2
_REFILL_S = 6.0  # a gateway whose write was refused retries within five
_LONGEST_REFILLING_MS = 15 * 60_000
_CONSUMER = "archive-"
_SEEN_S = 7 * 86_400.0

log = structlog.get_logger()


@dataclass(slots=True)
class Collected:
    """The result of a pass.

    ``duplicates`` were delivered again and have a row already; ``unreadable`` are the files of records that this
    version cannot read; ``trimmed`` entries left Redis; ``expired`` rows and entries were older than is kept. ``lost``
    entries left the stream before any pass archived them. ``warnings`` for the operator are sentences.
    """

    completions: int = 0
    feedback: int = 0
    duplicates: int = 0
    unreadable: tuple[Path, ...] = ()
    trimmed: int = 0
    expired: int = 0
    lost: int = 0
    warnings: tuple[str, ...] = ()

    @property
    def collected(self) -> int:
        return self.completions + self.feedback


async def collect(
    redis: RedisSettings,
    settings: DatasetSettings,
    *,
    wait_s: float = 600.0,
    batch_records: int = 256,
    flush_bytes: int = 8 * 1024 * 1024,
    on_archived: Callable[[Collected], None] = lambda _: None,
    trust_clock: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Collected:
    """Archive the stream's records, acknowledge and trim them, and remove records that are too old to keep.

    The pass ends after the newest record at its start; later records are for the next pass. If the stream was full,
    gateways' spools refill it with older records: the pass then goes on until new records were made after its start, or
    for a quarter of an hour (a gateway's clock may be late). It needs no additional memory in Redis: each batch is
    trimmed once it is acknowledged.

    Args:
        redis: Settings of the journal's Redis.
        settings: Settings of the archive.
        wait_s: How long to wait while another process collects into the same archive.
        batch_records: Most records of one read.
        flush_bytes: Size of the records in memory at which they are archived.
        on_archived: Called after each write with the counts so far.
        trust_clock: Expire old records although the clocks disagree or nothing was recorded for long.
        now: This machine's clock.

    Raises:
        DataError: The archive cannot be written: nothing unarchived was acknowledged. Or a part of it cannot be read;
            this is raised at the end of the pass. Repair it and run again.
        NightError: Redis does not answer, or another process collects for too long. Run again later.
        SettingsError: GATEWAY_REDIS__URL leads to a Redis Cluster or a Sentinel.
    """
    archive = Archive(settings.archive_dir)
    # One thread, which ends before the lock is released: a cancelled pass never writes while the next one does.
    async with _writer(archive, wait_s) as writer:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="archive") as thread:
            reader = JournalReader(
                redis,
                group=GROUP,
                consumer=f"{_CONSUMER}{writer.identity()}",
                batch_records=batch_records,
                claim_idle_s=settings.claim_idle_s,
            )
            collecting = _Pass(reader, writer, thread, flush_bytes, on_archived)
            done = collecting.done
            try:
                with _redis_in_words(done):
                    await collecting.archive(redis.stream_max_records)
                    done.warnings = await _warnings(reader)
                    if settings.keep_days is not None:
                        await collecting.expire(settings.keep_days, trust_clock, now())
            finally:
                await reader.aclose()
            done.duplicates += reader.duplicates
    _log_counts(done)
    for error in writer.damaged.values():
        raise DataError(f"{error} (the {done.collected} records of this pass are archived in other parts)")
    return done


def _log_counts(done: Collected) -> None:
    log.info("collected", completions=done.completions, feedback=done.feedback, unreadable=len(done.unreadable))
    if done.lost:
        log.error("records_lost_unread", count=done.lost)
    for warning in done.warnings:
        log.warning("collect_warning", problem=warning)


@dataclass
class _Pass:
    """One pass over the stream; ``done`` counts its results."""

    reader: JournalReader
    writer: ArchiveWriter
    thread: ThreadPoolExecutor
    flush_bytes: int
    on_archived: Callable[[Collected], None]
    done: Collected = field(default_factory=Collected)

    async def archive(self, stream_max_records: int) -> None:
        """Archive, acknowledge and trim what the stream holds, and what spools refill it with."""
        await self.reader.start()
        start = await self.reader.place()
        self.done.trimmed = await self.reader.trim()  # a killed pass may not have trimmed what it acknowledged
        began_ms = await self.reader.clock_ms()
        more = True
        while more:
            full = await self.reader.full(stream_max_records)
            oldest_ms = await self._drain()
            # No record is new if the stream is full because of another group.
            from_spools = oldest_ms is not None and oldest_ms < began_ms
            in_time = await self.reader.clock_ms() < began_ms + _LONGEST_REFILLING_MS
            more = full and from_spools and in_time
            more = more and await _filled_again(self.reader, stream_max_records)
        self.done.lost = await self.reader.lost_since(start)

    async def _drain(self) -> int | None:
        """Archive and acknowledge the stream's records; return the time of the oldest (ms since the epoch)."""
        end = await self.reader.newest()
        collected = datetime.fromtimestamp(await self.reader.clock_ms() / 1000, UTC)
        oldest_ms: int | None = None
        waiting: dict[str, StreamEntry] = {}
        more = True
        while more:
            deliveries = await self.reader.read()
            more = any(delivery.order <= end for delivery in deliveries)
            # A record that is redelivered, as if its reader were dead, must be acknowledged soon.
            overdue = any(delivery.entry_id in waiting for delivery in deliveries)
            waiting |= {delivery.entry_id: delivery for delivery in deliveries}
            n_bytes = sum(len(delivery.data) for delivery in waiting.values())
            if waiting and (not more or overdue or n_bytes >= self.flush_bytes):
                added = await self._add([delivery.data for delivery in waiting.values()], collected)
                oldest_ms = min((each for each in (oldest_ms, added.oldest_ms) if each is not None), default=None)
                await self.reader.ack(list(waiting))
                self.done.trimmed += await self.reader.trim()
                waiting = {}
                self.on_archived(self.done)
        return oldest_ms

    async def _add(self, payloads: list[bytes], collected: datetime) -> Added:
        added = await asyncio.get_running_loop().run_in_executor(self.thread, self.writer.add, payloads, collected)
        self.done.completions += added.completions
        self.done.feedback += added.feedback
        self.done.duplicates += added.duplicates
        self.done.unreadable = tuple(sorted({*self.done.unreadable, *added.unreadable}))
        return added

    async def expire(self, keep_days: int, trust_clock: bool, now: datetime) -> None:
        """Remove records older than ``keep_days``, unless the clocks are in doubt."""
        redis_now = datetime.fromtimestamp(await self.reader.clock_ms() / 1000, UTC)
        newest_ms = (await self.reader.newest())[0]
        newest = datetime.fromtimestamp(newest_ms / 1000, UTC) if newest_ms else None
        doubt = None if trust_clock else clock_doubt(now, redis_now, newest)
        if doubt is not None:
            self.done.warnings += (f"nothing was expired (DISTILL_DATASET__KEEP_DAYS): {doubt}",)
            return
        oldest = redis_now - timedelta(days=keep_days)
        self.done.expired = await self.reader.drop_before(int(oldest.timestamp() * 1000))
        # Whole days: a record is kept up to the end of the day on which it becomes too old.
        days = oldest.date().isoformat(), redis_now.date().isoformat()
        loop = asyncio.get_running_loop()
        self.done.expired += await loop.run_in_executor(self.thread, self.writer.drop_before, *days)


async def _filled_again(reader: JournalReader, max_records: int) -> bool:
    """Wait until the stream is full again; return False if it is not within the time of the gateways' retries."""
    deadline = asyncio.get_running_loop().time() + _REFILL_S
    while not await reader.full(max_records):
        if asyncio.get_running_loop().time() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def _warnings(reader: JournalReader) -> tuple[str, ...]:
    """Return warnings about other readers that keep records in Redis or take a share of them."""
    now_ms = await reader.clock_ms()
    held = [
        f"the consumer group {each.group} has not acknowledged records of {(now_ms - each.since_ms) / 3.6e6:.1f} hours "
        "ago, so Redis keeps them: if the group is not in use any more, remove it (XGROUP DESTROY)"
        for each in await reader.held_back()
    ]
    others = [
        f"{name} collected from this stream too, {idle_s / 3600:.1f} hours ago: that is another archive, and each gets "
        "a part of the records only. Collect into one; XGROUP DELCONSUMER removes a name that is no longer in use"
        for name, idle_s in (await reader.consumers()).items()
        if name.startswith(_CONSUMER) and idle_s < _SEEN_S
    ]
    return (*held, *others)


def clock_doubt(now: datetime, redis_now: datetime, newest: datetime | None) -> str | None:
    """Return why records' ages cannot be trusted, or None if they can.

    Args:
        now: By this machine's clock.
        redis_now: By Redis's clock.
        newest: Time of the stream's newest record, by Redis's clock; None if it never had a record.
    """
    apart = abs(now - redis_now)
    if apart > CLOCKS_APART:
        return (
            f"this machine's clock ({now:%Y-%m-%d %H:%M} UTC) and Redis's ({redis_now:%Y-%m-%d %H:%M} UTC) are "
            f"{_duration(apart)} apart; correct them"
        )
    if newest is not None and redis_now - newest > QUIET:
        return (
            f"the newest record is {_duration(redis_now - newest)} old, so the clock may be ahead; if it is right, run "
            "`python -m distill collect --trust-clock`"
        )
    return None


def _duration(span: timedelta) -> str:
    days = span / timedelta(days=1)
    return f"{days:.0f} days" if days >= 1.5 else f"{24 * days:.1f} hours"


@contextlib.asynccontextmanager
async def _writer(archive: Archive, wait_s: float) -> AsyncIterator[ArchiveWriter]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    with contextlib.ExitStack() as held:
        while True:
            try:
                writer = held.enter_context(writing(archive))
                break
            except NightError:  # another pass holds the archive
                if loop.time() >= deadline:
                    raise
            await asyncio.sleep(_POLL_S)
        yield writer


@contextlib.contextmanager
def _redis_in_words(done: Collected) -> Iterator[None]:
    try:
        yield
    except JournalError as error:
        raise NightError(
            f"{error.message}; {done.collected} records were archived before that, the others are still in Redis: "
            "run `python -m distill collect` again once it answers"
        ) from error
