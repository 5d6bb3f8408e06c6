"""From the stream to the archive: each record once."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from distill.dataset.archive import Archive
from distill.dataset.archive_writer import writing
from distill.dataset.collect import GROUP, Collected, collect
from distill.errors import DataError, NightError
from distill.settings import DatasetSettings
from gateway.files import write_atomically
from gateway.journal.reader import JournalReader
from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings
from tests.distill.dataset.records import STREAM, archived, ids, pending, publish, race, races, rated
from tests.redis_server import RedisServer
from tests.waiting import until

WEEK_S = 7 * 86_400


async def test_everything_is_archived_acknowledged_and_trimmed(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    records = races(600, days=3)
    counts: list[int] = []
    with redis_server.client() as client:
        publish(client, redis_settings, [*records, rated("chatcmpl-1", -1.0)])
        done = await collect(
            redis_settings, dataset, flush_bytes=100_000, on_archived=lambda done: counts.append(done.collected)
        )
        assert Collected(600, 1, 0, (), 601) == done
        assert 601 == done.collected == counts[-1]
        assert len(counts) > 1
        assert (0, 0) == (pending(client), client.xlen(STREAM))
    assert ids(records) == archived(dataset)


async def test_an_empty_stream_is_soon_collected(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    assert Collected() == await collect(redis_settings, dataset)
    assert Collected() == await collect(redis_settings, dataset)


async def test_second_copies_make_no_second_rows(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Within a pass, and in a later one."""
    records = races(10)
    with redis_server.client() as client:
        publish(client, redis_settings, [*records, *records])
        assert Collected(10, 0, 10, (), 20) == await collect(redis_settings, dataset)
        publish(client, redis_settings, [*records, race("new")])
        assert Collected(1, 0, 10, (), 11) == await collect(redis_settings, dataset)
    assert ["chatcmpl-0", "chatcmpl-1"] == archived(dataset)[:2]
    assert 11 == len(archived(dataset))


async def test_a_pass_ends_although_records_keep_coming(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Records present at its start are archived; later ones are for the next pass."""
    with redis_server.client() as client:
        publish(client, redis_settings, races(50))
        come = 50

        def more_come(_: Collected) -> None:
            nonlocal come
            publish(client, redis_settings, races(20, start=come))
            come += 20

        done = await collect(redis_settings, dataset, batch_records=10, flush_bytes=1, on_archived=more_come)
        assert 50 <= done.collected <= 70
        assert come > done.collected
        await collect(redis_settings, dataset)
    assert come == len(archived(dataset))


async def test_an_unreadable_record_is_kept_and_stops_nothing(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    with redis_server.client() as client:
        publish(client, redis_settings, [race("a"), b'{"kind": "riddle"}', race("b")])
        done = await collect(redis_settings, dataset)
        assert (2, 1, 3) == (done.collected, len(done.unreadable), done.trimmed)
        assert b'{"kind": "riddle"}' == done.unreadable[0].read_bytes()
        assert 0 == pending(client)


async def test_unacknowledged_records_of_a_dead_reader_are_claimed(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Another archive's reader read records and died."""
    records = races(30)
    with redis_server.client() as client:
        publish(client, redis_settings, records)
        dead = JournalReader(redis_settings, group=GROUP, consumer="dead")
        await dead.start()
        assert 30 == len(await dead.read())
        await dead.aclose()
        assert 0 == (await collect(redis_settings, dataset)).collected
        assert 30 == client.xlen(STREAM)
        eager = dataset.model_copy(update={"claim_idle_s": 0.001})
        assert Collected(30, 0, 0, (), 30) == await collect(redis_settings, eager)
    assert ids(records) == archived(dataset)


async def test_another_group_that_has_not_read_keeps_its_records(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    with redis_server.client() as client:
        publish(client, redis_settings, races(5))
        client.xgroup_create(STREAM, "audit", id="0")
        done = await collect(redis_settings, dataset)
        assert (5, 0, 5) == (done.completions, done.trimmed, client.xlen(STREAM))
        (warning,) = done.warnings
        assert "the consumer group audit has not acknowledged records of 0.0 hours ago" in warning
        client.xreadgroup("audit", "one", {STREAM: ">"}, noack=True)
        assert Collected(trimmed=5) == await collect(redis_settings, dataset)


async def test_a_full_stream_is_collected_together_with_the_spools(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings, tmp_path: Path
) -> None:
    """A gateway's spool holds six times the stream's limit: one pass archives all of it."""
    limited = redis_settings.model_copy(update={"stream_max_records": 50})
    journal = Journal(JournalSettings(spool_dir=tmp_path / "spool"), limited)
    await journal.start()
    try:
        records = races(350)
        assert all(await asyncio.gather(*(journal.append(record) for record in records)))
        await until(lambda: journal.stats.full)
        with redis_server.client() as client:
            assert 50 == client.xlen(STREAM)
        done = await collect(limited, dataset)
        assert (350, 350, 0) == (done.collected, done.trimmed, done.lost)
    finally:
        await journal.aclose()
    assert ids(records) == archived(dataset)


@pytest.mark.parametrize(("late_s", "passes_on"), [(0, False), (60, True)])
async def test_a_pass_ends_although_new_records_keep_filling_the_stream(
    late_s: int,
    passes_on: bool,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    dataset: DatasetSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only records from before its start are awaited; a gateway's late clock delays the end for a limited time."""
    monkeypatch.setattr("distill.dataset.collect._LONGEST_REFILLING_MS", 2000)
    limited = redis_settings.model_copy(update={"stream_max_records": 5})
    made = 0

    def refill(client: redis.Redis) -> None:
        nonlocal made
        records = [
            replace(record, id=f"chatcmpl-{made}-{record.id}", time_ms=time.time_ns() // 1_000_000 - late_s * 1000)
            for record in races(5)
        ]
        made += len(records)
        publish(client, redis_settings, records)

    with redis_server.client() as client:
        refill(client)
        async with asyncio.timeout(30):
            done = await collect(limited, dataset, on_archived=lambda _: refill(client))
    assert passes_on == (done.collected > 10)
    assert made == done.collected + 5


async def test_a_pass_ends_although_another_group_keeps_the_stream_full(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """It has read all records, and names the group."""
    limited = redis_settings.model_copy(update={"stream_max_records": 5})
    with redis_server.client() as client:
        publish(client, redis_settings, races(5))
        client.xgroup_create(STREAM, "audit", id="0")
        for expected in (5, 0):
            async with asyncio.timeout(30):
                done = await collect(limited, dataset)
            assert (expected, 1, 5) == (done.collected, len(done.warnings), client.xlen(STREAM))


async def test_a_second_archive_on_one_stream_is_a_warning(
    redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    """Each gets a part of the records; none is lost."""
    one, two = (DatasetSettings(archive_dir=tmp_path / name) for name in ("one", "two"))
    with redis_server.client() as client:
        for settings, warnings in ((one, 0), (one, 0), (two, 1), (one, 1)):
            publish(client, redis_settings, races(2))
            done = await collect(redis_settings, settings)
            assert warnings == len(done.warnings)
    assert "is another archive" in done.warnings[0]


@pytest.mark.parametrize(("idle_s", "warnings"), [(WEEK_S - 1, 1), (WEEK_S, 0), (WEEK_S + 1, 0)])
async def test_an_archive_without_a_pass_for_a_week_is_no_warning(
    idle_s: float,
    warnings: int,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    dataset: DatasetSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was moved or removed. Consumers other than archives do not count."""

    async def consumers(_: JournalReader) -> dict[str, float]:
        return {"archive-other": idle_s, "dead": 0.0}

    monkeypatch.setattr(JournalReader, "consumers", consumers)
    assert warnings == len((await collect(redis_settings, dataset)).warnings)


@pytest.mark.parametrize("read_before", [False, True], ids=["a first night", "a later night"])
async def test_collecting_frees_a_full_redis(
    read_before: bool, redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """With or without a group: reading needs no memory, and each batch leaves Redis once it is archived."""
    with redis_server.client() as client:
        if read_before:
            await collect(redis_settings, dataset)
        publish(client, redis_settings, races(200))
        redis_server.fill()
        left: list[int] = []
        done = await collect(
            redis_settings, dataset, batch_records=20, flush_bytes=1, on_archived=lambda _: left.append(trimmed(client))
        )
        assert (200, 200, 0) == (done.collected, done.trimmed, client.xlen(STREAM))
    assert list(range(180, -1, -20)) == left[:10]


def trimmed(client: redis.Redis) -> int:
    return int(client.xlen(STREAM))


async def test_unreachable_redis_is_an_error_and_the_next_pass_continues(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Gone in the middle, and absent from the start."""
    records = races(100, days=2)
    redis_server.restart(empty=True)
    with redis_server.client() as client:
        publish(client, redis_settings, records)
        snapshot = client.dump(STREAM)
    with pytest.raises(NightError, match=r"20 records were archived .* run `python -m distill collect` again"):
        await collect(
            redis_settings, dataset, batch_records=20, flush_bytes=1, on_archived=lambda _: redis_server.kill()
        )
    with pytest.raises(NightError, match=r"0 records were archived"):
        await collect(redis_settings, dataset)
    redis_server.start()
    with redis_server.client() as client:
        client.restore(STREAM, 0, snapshot)
    assert Collected(80, 0, 20, (), 100) == await collect(redis_settings, dataset)
    assert ids(records) == archived(dataset)


async def test_a_full_disk_acknowledges_nothing(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """The system refuses to write to any file; with free space again all is collected."""
    records = [replace(record, user="".join(map(chr, range(200, 20_000)))) for record in races(40)]
    with redis_server.client() as client:
        publish(client, redis_settings, records)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(DataError, match=r"cannot be written \(File too large\).*free space"):
                await collect(redis_settings, dataset)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (40, 40) == (pending(client), client.xlen(STREAM))
        assert [] == archived(dataset)
        assert Collected(40, 0, 0, (), 40) == await collect(redis_settings, dataset)
    assert ids(records) == archived(dataset)


@pytest.mark.parametrize("damage", [lambda whole: whole[:-100], lambda _: b"", lambda whole: b"?" * len(whole)])
async def test_a_damaged_part_is_an_error_and_keeps_no_record_in_redis(
    damage: Callable[[bytes], bytes],
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    dataset: DatasetSettings,
) -> None:
    """New records go into other parts; after the part is restored all records are readable."""
    with redis_server.client() as client:
        publish(client, redis_settings, [race("old")])
        await collect(redis_settings, dataset)
        (part,) = Archive(dataset.archive_dir).parts()
        whole = part.read_bytes()
        part.write_bytes(damage(whole))
        for name in ("new", "newer"):
            publish(client, redis_settings, [race(name)])
            with pytest.raises(
                DataError, match=f"{part} cannot be read.*the 1 records of this pass are archived in other parts"
            ):
                await collect(redis_settings, dataset)
            assert (0, 0) == (pending(client), client.xlen(STREAM))
        part.write_bytes(whole)
        assert Collected() == await collect(redis_settings, dataset)
    assert ["new", "newer", "old"] == archived(dataset)


async def test_two_collectors_at_once_share_the_work(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """One waits for the other; together they archive each record once."""
    records = races(200, days=2)
    with redis_server.client() as client:
        publish(client, redis_settings, records)
        passes = [collect(redis_settings, dataset, batch_records=10, flush_bytes=1) for _ in range(2)]
        assert 200 == sum(done.collected for done in await asyncio.gather(*passes))
    assert ids(records) == archived(dataset)


async def test_waiting_for_another_collector_ends_with_an_error(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    with (
        writing(Archive(dataset.archive_dir)),
        pytest.raises(NightError, match="another process is writing to the archive"),
    ):
        await collect(redis_settings, dataset, wait_s=0.3)


async def test_a_cancelled_pass_releases_the_lock_after_its_last_write(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it never writes during the next pass."""
    loop, begun, order = asyncio.get_running_loop(), asyncio.Event(), []

    def slow(path: Path, content: bytes) -> None:
        if path.suffix == ".parquet":
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.3)  # long enough for a cancellation to come first, were it not waited for
        write_atomically(path, content)
        order.append(path.suffix)

    monkeypatch.setattr("distill.dataset.archive_writer.write_atomically", slow)
    with redis_server.client() as client:
        publish(client, redis_settings, races(5))
    task = asyncio.create_task(collect(redis_settings, dataset))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ".parquet" == order[-1]
    monkeypatch.undo()
    assert Collected(0, 0, 5, (), 5) == await collect(redis_settings, dataset)
