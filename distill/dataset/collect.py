"""From the journal's stream to the archive: what is on disk is acknowledged, what is acknowledged leaves Redis.

Killed at any point, the next pass goes on: a record archived but not acknowledged is delivered again and found to have
its row. The consumer is named after the archive, so what a killed pass had taken comes back to the next one at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from distill.dataset.archive import Archive
from distill.dataset.archive_writer import ArchiveWriter, writing
from distill.errors import NightError
from distill.settings import DatasetSettings
from gateway.errors import JournalError
from gateway.journal.reader import Delivery, JournalReader
from gateway.settings import RedisSettings

GROUP = "night"
_POLL_S = 0.2

log = structlog.get_logger()


@dataclass(slots=True)
class Collected:
    """What one pass did.

    ``duplicates`` were delivered again and have their row; ``unreadable`` names the files that keep what no version up
    to this one can read; ``trimmed`` entries left Redis; ``expired`` rows and entries were older than is kept.
    """

    completions: int = 0
    feedback: int = 0
    duplicates: int = 0
    unreadable: tuple[Path, ...] = ()
    trimmed: int = 0
    expired: int = 0

    @property
    def collected(self) -> int:
        """New rows."""
        return self.completions + self.feedback


async def collect(
    redis: RedisSettings,
    settings: DatasetSettings,
    *,
    wait_s: float = 600.0,
    batch_records: int = 256,
    flush_bytes: int = 8 * 1024 * 1024,
    on_archived: Callable[[Collected], None] = lambda _: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Collected:
    """Archive what the stream holds now, acknowledge it, trim Redis by it, and let go of what is too old to keep.

    Ends once everything that was in the stream at the start has been seen; what comes meanwhile is for the next pass.

    Args:
        redis: Where the journal's stream is.
        settings: Where the archive is.
        wait_s: How long to wait while another process collects into the same archive.
        batch_records: Most records of one read.
        flush_bytes: Records are archived once so many bytes of them wait in memory.
        on_archived: Called after each write with the counts so far.
        now: The time by which records are too old.

    Raises:
        DataError: The archive cannot be written or read. Nothing unarchived was acknowledged: mend it and run again.
        NightError: Redis does not answer, or another process collects for too long. Run again later.
    """
    archive = Archive(settings.archive_dir)
    # One thread, and it ends before the archive is let go of: a cancelled pass never writes behind the next one's back.
    async with _writer(archive, wait_s) as writer:
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="archive") as thread:
            reader = JournalReader(
                redis,
                group=GROUP,
                consumer=f"archive-{writer.identity()}",
                batch_records=batch_records,
                claim_idle_s=settings.claim_idle_s,
            )
            done = Collected()
            try:
                with _redis_in_words(done):
                    await _drain(reader, writer, thread, done, flush_bytes, on_archived)
                    done.trimmed = await reader.trim()
                    if settings.keep_days is not None:
                        oldest = now() - timedelta(days=settings.keep_days)
                        done.expired = await reader.drop_before(int(oldest.timestamp() * 1000))
                        # Whole days: the day on which a record becomes too old is the last that it is kept.
                        done.expired += await asyncio.get_running_loop().run_in_executor(
                            thread, writer.drop_before, oldest.date().isoformat()
                        )
            finally:
                await reader.aclose()
            done.duplicates += reader.duplicates
    log.info("collected", completions=done.completions, feedback=done.feedback, unreadable=len(done.unreadable))
    return done


async def _drain(
    reader: JournalReader,
    writer: ArchiveWriter,
    thread: ThreadPoolExecutor,
    done: Collected,
    flush_bytes: int,
    on_archived: Callable[[Collected], None],
) -> None:
    await reader.start()
    end = await reader.newest()
    waiting: dict[str, Delivery] = {}
    more = True
    while more:
        deliveries = await reader.read()
        more = any(delivery.order <= end for delivery in deliveries)
        # What waited so long that it counts as a dead reader's is delivered again: high time to acknowledge it.
        overdue = any(delivery.entry_id in waiting for delivery in deliveries)
        waiting |= {delivery.entry_id: delivery for delivery in deliveries}
        n_bytes = sum(len(delivery.data) for delivery in waiting.values())
        if waiting and (not more or overdue or n_bytes >= flush_bytes):
            payloads = [delivery.data for delivery in waiting.values()]
            added = await asyncio.get_running_loop().run_in_executor(thread, writer.add, payloads)
            done.completions += added.completions
            done.feedback += added.feedback
            done.duplicates += added.duplicates
            done.unreadable = tuple(sorted({*done.unreadable, *added.unreadable}))
            await reader.ack(list(waiting))
            waiting = {}
            on_archived(done)


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
            f"{error.message}; {done.collected} records were archived before that and the rest waits in Redis: "
            "run `python -m distill collect` again once it answers"
        ) from error
