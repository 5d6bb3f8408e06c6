"""An append is durable when it returns, many share one fsync, and no failure of disk or Redis raises an error."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import JournalError
from gateway.journal.record import encode
from gateway.journal.shipper import Shipper
from gateway.journal.spool import SpoolReader
from gateway.journal.stream import parse_entries
from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings
from tests.gateway.journal.conftest import MakeJournal
from tests.gateway.journal.records import completion
from tests.redis_server import RedisServer


class Disk:
    """A replacement for fdatasync that counts, waits, or fails."""

    def __init__(self) -> None:
        self.syncs = 0
        self.broken = False
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def sync(self, fd: int) -> None:
        self.syncs += 1
        self.entered.set()
        self.go_on.wait()
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")
        os.fdatasync(fd)


def spooled_ids(spool: Path) -> list[bytes]:
    (folder,) = (path for path in spool.iterdir() if path.is_dir())
    return [frame.record_id for frame in SpoolReader(folder).read(max_records=1_000, max_bytes=10**9, end=None)]


async def test_an_append_returns_when_the_record_is_synced(make_journal: MakeJournal, tmp_path: Path) -> None:
    """The caller waits while fdatasync runs; afterwards the record is in the file."""
    disk = Disk()
    disk.go_on.clear()
    journal = make_journal(sync=disk.sync)
    await journal.start()
    append = asyncio.create_task(journal.append(completion("chatcmpl-1")))
    await asyncio.to_thread(disk.entered.wait)
    assert not append.done()
    disk.go_on.set()
    assert await append
    assert [b"chatcmpl-1"] == await asyncio.to_thread(spooled_ids, tmp_path / "spool")


async def test_records_that_wait_together_share_one_fsync(make_journal: MakeJournal) -> None:
    """Fifty appends during an fsync cost one more fsync."""
    disk = Disk()
    disk.go_on.clear()
    journal = make_journal(sync=disk.sync)
    await journal.start()
    first = asyncio.create_task(journal.append(completion("chatcmpl-first")))
    await asyncio.to_thread(disk.entered.wait)
    others = [asyncio.create_task(journal.append(completion(f"chatcmpl-{n}"))) for n in range(50)]
    await asyncio.sleep(0)  # all are in the queue
    disk.go_on.set()
    assert all(await asyncio.gather(first, *others))
    assert (2, 2, 51) == (disk.syncs, journal.stats.commits, journal.stats.appended_records)


async def test_relaxed_writes_without_fsync(make_journal: MakeJournal, tmp_path: Path) -> None:
    """The kernel has the record when the append returns."""
    disk = Disk()
    journal = make_journal("relaxed", sync=disk.sync)
    await journal.start()
    assert await journal.append(completion("chatcmpl-1"))
    assert [b"chatcmpl-1"] == await asyncio.to_thread(spooled_ids, tmp_path / "spool")
    assert 0 == disk.syncs


async def test_a_large_group_is_split(make_journal: MakeJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many records are written in groups of bounded size."""
    monkeypatch.setattr("gateway.journal.writer._COMMIT_BYTES", 1)
    disk = Disk()
    journal = make_journal(sync=disk.sync)
    await journal.start()
    assert all(await asyncio.gather(*(journal.append(completion(f"chatcmpl-{n}")) for n in range(5))))
    assert 5 == disk.syncs


async def test_a_cancelled_caller_does_not_affect_others(make_journal: MakeJournal, tmp_path: Path) -> None:
    """Its record is written with the others', whose callers get their result."""
    disk = Disk()
    disk.go_on.clear()
    journal = make_journal(sync=disk.sync)
    await journal.start()
    gone = asyncio.create_task(journal.append(completion("chatcmpl-gone")))
    await asyncio.to_thread(disk.entered.wait)
    gone.cancel()
    await asyncio.wait([gone])
    other = asyncio.create_task(journal.append(completion("chatcmpl-other")))
    disk.go_on.set()
    assert await other
    assert [b"chatcmpl-gone", b"chatcmpl-other"] == await asyncio.to_thread(spooled_ids, tmp_path / "spool")


async def test_records_that_the_disk_refuses_are_sent_to_redis_from_memory(
    make_journal: MakeJournal, redis_server: RedisServer
) -> None:
    """The append returns False at once, Redis gets the record, and the journal recovers with the disk."""
    disk = Disk()
    journal = make_journal(sync=disk.sync)
    await journal.start()
    disk.broken = True
    assert not await journal.append(completion("chatcmpl-1"))
    assert "the spool's disk refuses records" in (await journal.readiness()).detail
    disk.broken = False
    assert await journal.append(completion("chatcmpl-2"))
    assert await journal.drained(30)
    assert "" == (await journal.readiness()).detail
    assert 0 == journal.stats.lost_records
    with redis_server.client() as client:
        entries: Any = client.xrange("ratchet:journal")
    assert ["chatcmpl-1", "chatcmpl-2"] == sorted(entry.record_id for entry in parse_entries(entries))


async def test_without_disk_and_redis_a_record_is_lost_and_counted(make_journal: MakeJournal) -> None:
    """The caller gets the answer, and the loss is counted."""
    disk = Disk()
    disk.broken = True
    journal = make_journal(sync=disk.sync)
    await journal.start()
    refused = [asyncio.create_task(journal.append(completion(f"chatcmpl-{n}"))) for n in range(3)]
    refused[0].cancel()
    assert [False, False] == await asyncio.gather(*refused[1:])
    await journal.aclose()
    assert 2 <= journal.stats.lost_records <= 3


async def test_the_memory_for_refused_records_is_bounded(
    make_journal: MakeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Further records are lost at once; otherwise the process would run out of memory."""
    monkeypatch.setattr("gateway.journal.shipper._DIRECT_BYTES", 2 * len(encode(completion("chatcmpl-0"))))
    disk = Disk()
    disk.broken = True
    journal = make_journal(sync=disk.sync)
    await journal.start()
    for n in range(4):
        with capture_logs() as logs:
            assert not await journal.append(completion(f"chatcmpl-{n}"))
    assert 2 == journal.stats.lost_records
    assert [["chatcmpl-3"]] == [line["records"] for line in logs]


async def test_a_journal_that_is_not_running_raises_an_error(make_journal: MakeJournal) -> None:
    """Before the start and after the close; closing twice does nothing."""
    journal = make_journal()
    with pytest.raises(JournalError, match="not running"):
        await journal.append(completion())
    assert not (await journal.readiness()).ready
    await journal.start()
    assert (await journal.readiness()).ready
    await journal.aclose(drain_s=0)
    await journal.aclose()
    with pytest.raises(JournalError, match="not running"):
        await journal.append(completion())


async def test_a_spool_that_cannot_be_written_prevents_the_start(tmp_path: Path, redis_settings: RedisSettings) -> None:
    """The error names the folder."""
    (tmp_path / "file").touch()
    journal = Journal(JournalSettings(spool_dir=tmp_path / "file" / "spool"), redis_settings)
    with pytest.raises(JournalError, match="file/spool cannot be written: Not a directory"):
        await journal.start()


async def test_a_spool_over_its_limit_is_reported_and_still_written(
    tmp_path: Path, redis_settings: RedisSettings
) -> None:
    """Records matter more than the limit; readiness tells the operator."""
    settings = JournalSettings(spool_dir=tmp_path, max_spool_bytes=1_000_000)
    journal = Journal(settings, redis_settings)
    await journal.start()
    journal.stats.lag_bytes += 1_000_000
    assert await journal.append(completion())
    readiness = await journal.readiness()
    assert readiness.ready
    assert "over its limit" in readiness.detail
    await journal.aclose(drain_s=0)


async def test_a_shipper_that_ends_is_reported(make_journal: MakeJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readiness shows a programming error in the background; records are still written to disk."""

    async def fail(self: Shipper) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Shipper, "run", fail)
    journal = make_journal()
    await journal.start()
    assert await journal.append(completion())
    assert "ZeroDivisionError" in (await journal.readiness()).detail
