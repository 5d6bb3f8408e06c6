"""Appends work in every state of Redis, and all records arrive in the stream."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis

from gateway.journal.link import StreamLink
from gateway.journal.record import feedback_record
from gateway.journal.writer import Journal
from gateway.settings import RedisSettings
from tests.gateway.journal.conftest import MakeJournal
from tests.gateway.journal.records import completion
from tests.gateway.journal.shipping import PATIENCE_S, STREAM, append, arrived, entries_of, until_failing
from tests.memory import MEGABYTE, growth
from tests.redis_server import RedisServer
from tests.waiting import until


def append_only_file(journal: Journal) -> bool | None:
    """Return True if Redis acknowledges what its append-only file has, False if only its memory, None until known."""
    return journal._shipper._link.aof


async def test_records_arrive_whole_and_in_order(make_journal: MakeJournal, redis_server: RedisServer) -> None:
    """An entry's ``data`` is the record, its ``id`` the record's; the spool is empty."""
    journal = make_journal()
    await journal.start()
    names = [f"chatcmpl-{n}" for n in range(600)]
    await append(journal, *names)
    assert await journal.drained(PATIENCE_S)
    assert names == arrived(redis_server)
    assert completion("chatcmpl-0") == entries_of(redis_server)[0].record()
    assert (0, 0) == (journal.stats.lag_records, journal.stats.lag_bytes)


async def test_redis_down_at_start(make_journal: MakeJournal, stopped_redis_server: RedisServer) -> None:
    """Appends work without it; it gets all records once it is up."""
    journal = make_journal()
    await journal.start()
    await append(journal, "a", "b")
    await until_failing(journal, "ConnectionError")
    assert not journal.stats.connected
    assert "Redis takes no records (ConnectionError)" == (await journal.readiness()).detail
    assert not await journal.drained(0.05)
    stopped_redis_server.start()
    assert await journal.drained(PATIENCE_S)
    assert ["a", "b"] == arrived(stopped_redis_server)
    assert (True, None) == (journal.stats.connected, journal.stats.last_error)


async def test_redis_frozen(
    make_journal: MakeJournal, redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """A Redis that does not answer delays no append, and gets all records once it answers."""
    journal = make_journal(redis=redis_settings.model_copy(update={"timeout_s": 0.5}))
    await journal.start()
    await append(journal, "before")
    assert await journal.drained(PATIENCE_S)
    redis_server.pause()
    await append(journal, *[f"during-{n}" for n in range(20)])
    await until_failing(journal, "TimeoutError")
    await append(journal, "later")
    redis_server.resume()
    assert await journal.drained(PATIENCE_S)
    assert {"before", "later", *[f"during-{n}" for n in range(20)]} == set(arrived(redis_server))


async def test_records_of_a_broken_connection_are_freed(make_journal: MakeJournal) -> None:
    """They are in the spool; no copy in memory waits for the garbage collector."""
    attempts = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        while len(said := await reader.read(4096)) < 4096:
            writer.write(b"-ERR not known\r\n" * said.count(b"*"))
        attempts += 1
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    journal = make_journal(redis=RedisSettings(url=f"redis://127.0.0.1:{port}"))
    large = feedback_record(completion_id="a", rating=1, comment="a" * (8 * MEGABYTE), key_id=None)
    with growth() as grown_mb:
        await journal.start()
        assert await journal.append(large)
        await until(lambda: attempts >= 4 and grown_mb() < 4)
    server.close()


async def test_redis_out_of_memory(make_journal: MakeJournal, redis_server: RedisServer) -> None:
    """A full Redis refuses records, the spool keeps them, and none arrives twice."""
    journal = make_journal()
    await journal.start()
    await append(journal, "before")
    assert await journal.drained(PATIENCE_S)
    redis_server.fill()
    await append(journal, "during-1", "during-2")
    await until_failing(journal, "OutOfMemoryError")
    redis_server.drain()
    assert await journal.drained(PATIENCE_S)
    assert ["before", "during-1", "during-2"] == arrived(redis_server)


async def test_redis_read_only(make_journal: MakeJournal, redis_server: RedisServer) -> None:
    """A replica refuses writes; after the failover it takes them."""
    journal = make_journal()
    await journal.start()
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", 1)
        await append(journal, "a")
        await until_failing(journal, "ReadOnlyError")
        client.replicaof("NO", "ONE")
    assert await journal.drained(PATIENCE_S)
    assert ["a"] == arrived(redis_server)


async def test_redis_restarted_empty(make_journal: MakeJournal, redis_server: RedisServer) -> None:
    """Records that it had acknowledged from memory are lost; all others arrive."""
    journal = make_journal()
    await journal.start()
    await append(journal, "forgotten")
    assert await journal.drained(PATIENCE_S)
    redis_server.kill()
    await append(journal, "kept")
    await until_failing(journal, "ConnectionError")
    redis_server.start()
    assert await journal.drained(PATIENCE_S)
    assert ["kept"] == arrived(redis_server)
    assert append_only_file(journal) is False


async def test_redis_with_an_append_only_file_loses_nothing_it_acknowledged(
    make_journal: MakeJournal, stopped_redis_server: RedisServer
) -> None:
    """Redis is killed right after the acknowledgement and still has the records."""
    stopped_redis_server.start(appendonly="yes", appendfsync="everysec")
    journal = make_journal()
    await journal.start()
    await append(journal, *map(str, range(50)))
    assert await journal.drained(PATIENCE_S)
    assert append_only_file(journal) is True
    stopped_redis_server.restart()
    assert {str(n) for n in range(50)} <= set(arrived(stopped_redis_server))


async def test_a_stream_key_of_another_type_delays_shipping_only(
    make_journal: MakeJournal, redis_server: RedisServer
) -> None:
    """Appends go on until an operator corrects it."""
    with redis_server.client() as client:
        client.set(STREAM, "not a stream")
        journal = make_journal()
        await journal.start()
        await append(journal, "a")
        await until_failing(journal, "ResponseError")
        client.delete(STREAM)
    assert await journal.drained(PATIENCE_S)
    assert ["a"] == arrived(redis_server)


async def test_records_in_memory_survive_a_refusal(make_journal: MakeJournal, redis_server: RedisServer) -> None:
    """Records that the disk refused wait in memory while Redis refuses them, too."""

    def broken(fd: int) -> None:
        raise OSError

    journal = make_journal(sync=broken)
    await journal.start()
    redis_server.fill()
    assert not await journal.append(completion("a"))
    await until_failing(journal, "OutOfMemoryError")
    redis_server.drain()
    assert await journal.drained(PATIENCE_S)
    assert ["a"] == arrived(redis_server)


@pytest.mark.parametrize(("appended", "waiting"), [(99, 0), (100, 0), (101, 1)])
async def test_a_full_stream_drops_nothing_and_records_wait_in_the_spool(
    appended: int,
    waiting: int,
    make_journal: MakeJournal,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
) -> None:
    """Readiness tells it; the rest follows once the stream was read and trimmed."""
    limited = redis_settings.model_copy(update={"stream_max_records": 100})
    journal = make_journal(redis=limited)
    await journal.start()
    await append(journal, *map(str, range(appended)))
    await until(lambda: journal.stats.lag_records == waiting)
    if waiting:
        await until_failing(journal, "StreamFull")
        assert (True, True) == (journal.stats.full, journal.stats.connected)
        assert "the stream in Redis is full until the night collects (StreamFull)" == (
            (await journal.readiness()).detail
        )
    assert (appended - waiting, waiting) == (len(arrived(redis_server)), journal.stats.lag_records)
    with redis_server.client() as client:
        client.xtrim(STREAM, maxlen=10, approximate=False)
    assert await journal.drained(PATIENCE_S)
    assert 10 + waiting == len(arrived(redis_server))
    await until(lambda: journal.stats.stream_records == 10 + waiting and not journal.stats.full)


async def test_a_record_that_the_disk_refused_goes_beyond_the_streams_limit(
    make_journal: MakeJournal, redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """It is nowhere else."""
    journal = make_journal(redis=redis_settings.model_copy(update={"stream_max_records": 1}), sync=_refuses)
    await journal.start()
    assert [False, False] == await asyncio.gather(*(journal.append(completion(name)) for name in "ab"))
    assert await journal.drained(PATIENCE_S)
    assert ["a", "b"] == sorted(arrived(redis_server))


def _refuses(_: int) -> None:
    raise OSError(28, "no space left on device")


async def test_a_slow_append_only_file_is_asked_again(
    make_journal: MakeJournal, stopped_redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """An fsync that outlasts one wait delays the acknowledgement; nothing is sent twice."""
    stopped_redis_server.start(appendonly="yes", appendfsync="no")
    journal = make_journal(redis=redis_settings.model_copy(update={"timeout_s": 2.0}))
    await journal.start()
    await append(journal, "a")
    await until(lambda: append_only_file(journal) is True)  # asked once, without success
    assert not await journal.drained(0.0)
    stopped_redis_server.configure(appendfsync="always")
    with stopped_redis_server.client() as client:
        client.set("any", "write")  # makes the server sync
    assert await journal.drained(PATIENCE_S)
    assert ["a"] == arrived(stopped_redis_server)


async def test_closing_ends_even_when_a_cancellation_is_swallowed(
    make_journal: MakeJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.wait_for, which the Redis client uses, can swallow one before Python 3.12."""
    entered = asyncio.Event()

    async def swallow(link: StreamLink) -> None:
        entered.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise redis.exceptions.ConnectionError

    monkeypatch.setattr(StreamLink, "connect", swallow)
    journal = make_journal()
    await journal.start()
    await entered.wait()
    async with asyncio.timeout(PATIENCE_S):
        await journal.aclose(drain_s=0)


def test_the_test_server_works_as_the_tests_expect(redis_server: RedisServer) -> None:
    """It is real and empty, and refuses writes once filled."""
    with redis_server.client() as client:
        assert 0 == client.dbsize()
        redis_server.fill()
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            client.set("k", "v")
