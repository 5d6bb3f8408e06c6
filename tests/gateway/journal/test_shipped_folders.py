"""Workers share a spool: each ships its own folder and those of dead workers, and removes them at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from gateway.journal import shipper
from gateway.journal.claim import Claim
from gateway.journal.shipper import JournalStats, Shipper
from gateway.settings import RedisSettings
from tests.gateway.journal.conftest import MakeJournal
from tests.gateway.journal.shipping import PATIENCE_S, append, arrived, until_failing
from tests.redis_server import RedisServer
from tests.waiting import until

T = TypeVar("T")


def folders(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "spool").iterdir() if path.is_dir()]


async def test_a_clean_end_leaves_no_folder(
    make_journal: MakeJournal, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Closing ships the last records first."""
    journal = make_journal(segment_bytes=3_000)
    await journal.start()
    await append(journal, *map(str, range(10)))
    await journal.aclose(drain_s=PATIENCE_S)
    assert 10 == len(arrived(redis_server))
    assert [] == folders(tmp_path)


class _Late(ThreadPoolExecutor):
    """Starts each call with a delay, as on a busy machine."""

    def submit(self, call: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        super().submit(time.sleep, 0.1)
        return super().submit(call, *args, **kwargs)


async def test_closing_waits_until_the_cursor_is_saved(
    make_journal: MakeJournal, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the next start would send confirmed records again."""
    monkeypatch.setattr(shipper, "ThreadPoolExecutor", _Late)
    journal = make_journal()
    await journal.start()
    await append(journal, "a")
    await until(lambda: journal.stats.lag_records == 0)
    await journal.aclose(drain_s=PATIENCE_S)
    assert ["a"] == arrived(redis_server)
    assert [] == folders(tmp_path)


async def test_two_workers_share_a_spool(make_journal: MakeJournal, redis_server: RedisServer, tmp_path: Path) -> None:
    """Each has its own folder and does not claim the other's."""
    first, second = make_journal(), make_journal()
    await first.start()
    await second.start()
    assert 2 == len(folders(tmp_path))
    await asyncio.gather(append(first, "a", "b"), append(second, "c", "d"))
    assert await first.drained(PATIENCE_S)
    assert await second.drained(PATIENCE_S)
    assert ["a", "b", "c", "d"] == sorted(arrived(redis_server))


async def test_the_next_worker_ships_what_one_left(
    make_journal: MakeJournal, stopped_redis_server: RedisServer, tmp_path: Path
) -> None:
    """One ends without Redis, the next has it: all records arrive, and both folders are removed."""
    ended = make_journal()
    await ended.start()
    await append(ended, "a", "b")
    await ended.aclose()
    stopped_redis_server.start()
    started = make_journal()
    await started.start()
    assert await started.drained(PATIENCE_S)
    assert ["a", "b"] == arrived(stopped_redis_server)
    await started.aclose(drain_s=PATIENCE_S)
    assert [] == folders(tmp_path)


async def test_an_orphan_that_was_not_shipped_stays_for_the_next_worker(
    make_journal: MakeJournal, tmp_path: Path, stopped_redis_server: RedisServer
) -> None:
    for _ in range(2):
        journal = make_journal()
        await journal.start()
        await until_failing(journal, "ConnectionError")
        await append(journal, "a")
        await journal.aclose()
    assert 2 == len(folders(tmp_path))


async def test_a_running_worker_adopts_one_that_dies_later(
    make_journal: MakeJournal,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Its records are shipped without a restart."""
    monkeypatch.setattr("gateway.journal.shipper._ADOPT_S", 0.05)
    away = redis_settings.model_copy(update={"url": "redis://127.0.0.1:1/0"})
    living, dying = make_journal(), make_journal(redis=away)
    await living.start()
    await dying.start()
    await append(dying, "a")
    await dying.aclose()
    await until(lambda: len(folders(tmp_path)) == 1)
    assert ["a"] == arrived(redis_server)


async def test_an_unreadable_folder_delays_no_other(
    make_journal: MakeJournal, redis_server: RedisServer, tmp_path: Path
) -> None:
    """A segment that cannot be opened stays; the rest is shipped."""
    orphan = await asyncio.to_thread(Claim.new, tmp_path / "spool")
    (orphan.folder / "00000001.seg").mkdir()  # cannot be opened as a file, not even by root
    orphan.release()
    journal = make_journal()
    await journal.start()
    await append(journal, "a")
    assert await journal.drained(PATIENCE_S)
    assert ["a"] == arrived(redis_server)
    assert orphan.folder.exists()


async def test_the_journal_runs_on_when_its_own_folder_breaks(
    make_journal: MakeJournal, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Its records count as lag; closing logs the error and does not raise."""
    journal = make_journal()
    await journal.start()
    await append(journal, "a")
    assert await journal.drained(PATIENCE_S)
    (folder,) = folders(tmp_path)
    (folder / "00000001.seg").rename(folder / "aside")
    (folder / "00000001.seg").mkdir()
    await append(journal, "b")
    assert not await journal.drained(0.2)
    assert 1 == journal.stats.lag_records
    with capture_logs() as logs:
        await journal.aclose(drain_s=0)
    assert [folder.name] == [line["folder"] for line in logs if line["event"] == "spool_not_released"]
    assert folder.exists()


async def test_a_cursor_that_cannot_be_saved_does_not_stop_shipping(
    make_journal: MakeJournal, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Redis has the record and may get it again."""
    journal = make_journal()
    await journal.start()
    (folder,) = folders(tmp_path)
    (folder / "cursor").mkdir()
    with capture_logs() as logs:
        await append(journal, "a")
        assert await journal.drained(PATIENCE_S)
    assert "cursor_not_saved" in {line["event"] for line in logs}
    assert (["a"], None) == (arrived(redis_server), journal.stats.last_error)


def test_the_shipper_is_idle_only_after_it_has_looked_for_orphans(
    tmp_path: Path, redis_settings: RedisSettings
) -> None:
    """``drain`` must not return before orphans are shipped."""
    claim = Claim.new(tmp_path)
    assert not Shipper(claim, redis_settings, stats=JournalStats()).idle
    claim.release()
