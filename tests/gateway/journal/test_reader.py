"""Readers of a group share the stream, drop second copies, and get dead consumers' records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.errors import JournalError
from gateway.journal.reader import JournalReader
from gateway.journal.record import encode
from gateway.journal.stream import StreamEntry
from gateway.settings import RedisSettings
from tests.gateway.journal.records import completion
from tests.redis_server import RedisServer

STREAM = "ratchet:journal"
MakeReader = Callable[..., JournalReader]


@pytest.fixture
async def make_reader(redis_settings: RedisSettings) -> AsyncIterator[MakeReader]:
    """Yield a function that makes readers of one group; close them after the test."""
    readers: list[JournalReader] = []

    def make(consumer: str = "one", group: str = "night", **options: Any) -> JournalReader:
        readers.append(JournalReader(redis_settings, group=group, consumer=consumer, **options))
        return readers[-1]

    yield make
    for reader in readers:
        await reader.aclose()


def add(server: RedisServer, *names: str) -> None:
    with server.client() as client:
        for name in names:
            client.xadd(STREAM, {"id": name, "data": encode(completion(name))})


def pending(server: RedisServer, group: str = "night") -> int:
    with server.client() as client:
        summary: Any = client.xpending(STREAM, group)
    return int(summary["pending"])


def names(deliveries: list[StreamEntry]) -> list[str]:
    return [delivery.record_id for delivery in deliveries]


def entry_ids(deliveries: list[StreamEntry]) -> list[str]:
    return [delivery.entry_id for delivery in deliveries]


async def test_records_come_once_and_in_order(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """From the start of the stream, in batches, until none is left."""
    add(redis_server, "a", "b", "c")
    reader = make_reader(batch_records=2)
    await reader.start()
    first, second, third = await reader.read(), await reader.read(), await reader.read()
    assert [["a", "b"], ["c"], []] == [names(first), names(second), names(third)]
    assert completion("a") == first[0].record()
    await reader.ack(entry_ids(first + second))
    await reader.ack([])
    assert 0 == pending(redis_server)


async def test_a_waiting_reader_gets_the_next_record(make_reader: MakeReader, redis_server: RedisServer) -> None:
    reader = make_reader()
    await reader.start()
    waiting = asyncio.create_task(reader.read(wait_s=30))
    await asyncio.sleep(0)
    add(redis_server, "a")
    assert ["a"] == names(await waiting)


async def test_a_wait_without_records_returns_an_empty_list(make_reader: MakeReader, redis_server: RedisServer) -> None:
    reader = make_reader()
    await reader.start()
    assert [] == await reader.read(wait_s=0.01)


async def test_starting_twice_keeps_the_groups_place(make_reader: MakeReader, redis_server: RedisServer) -> None:
    add(redis_server, "a")
    first, second = make_reader("one"), make_reader("two")
    await first.start()
    assert ["a"] == names(await first.read())
    await second.start()
    assert [] == await second.read()


async def test_second_copies_are_dropped_and_acknowledged(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """The first copy stays pending until its reader acknowledges it."""
    add(redis_server, "a", "b", "a", "a")
    reader = make_reader()
    await reader.start()
    assert ["a", "b"] == names(await reader.read())
    assert (2, 2) == (reader.duplicates, pending(redis_server))
    add(redis_server, "b")
    assert [] == await reader.read()


async def test_the_window_of_remembered_ids_is_bounded(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """A copy of an older record is delivered: memory is bounded."""
    reader = make_reader(window=2)
    await reader.start()
    add(redis_server, "a", "b", "c")
    await reader.read()
    add(redis_server, "a", "c")
    assert ["a"] == names(await reader.read())


async def test_a_restarted_consumer_gets_its_unacknowledged_records(
    make_reader: MakeReader, redis_server: RedisServer
) -> None:
    """In batches, before new records."""
    add(redis_server, "a", "b", "c")
    died = make_reader("one")
    await died.start()
    await died.read()
    add(redis_server, "d")
    reader = make_reader("one", batch_records=2)
    await reader.start()
    assert [["a", "b"], ["c"], ["d"]] == [names(await reader.read()) for _ in range(3)]


async def test_a_dead_consumers_records_are_claimed(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """The next reader gets all of them, and none of a living consumer's."""
    add(redis_server, *map(str, range(50)))
    dead = make_reader("dead")
    await dead.start()
    left = names(await dead.read())
    cautious = make_reader("two", claim_idle_s=3600)
    assert [] == await cautious.read()
    heir = make_reader("heir", claim_idle_s=0, batch_records=50)
    assert left == names(await heir.read())


async def test_the_claim_skips_records_that_are_not_idle(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """A dead consumer's record is found after many of living consumers."""
    add(redis_server, *map(str, range(40)))
    living = make_reader("living", batch_records=40)
    await living.start()
    held = await living.read()
    with redis_server.client() as client:  # its consumer has been idle for long
        client.execute_command("XCLAIM", STREAM, "night", "dead", 0, held[-1].entry_id, "IDLE", 10_000_000)
    heir = make_reader("heir", batch_records=1, claim_idle_s=3600)
    assert [held[-1].record_id] == names(await heir.read())


async def test_a_record_trimmed_before_it_was_read_is_not_delivered(
    make_reader: MakeReader, redis_server: RedisServer
) -> None:
    """The group forgets it, too."""
    add(redis_server, "a", "b")
    died = make_reader("one")
    await died.start()
    deliveries = await died.read()
    with redis_server.client() as client:
        client.xdel(STREAM, deliveries[0].entry_id)
    reader = make_reader("one")
    assert ["b"] == names(await reader.read())
    assert 1 == pending(redis_server)


async def test_a_foreign_entry_is_delivered_as_unreadable(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """The caller can count and acknowledge it."""
    with redis_server.client() as client:
        client.xadd(STREAM, {"other": "field"})
        client.xadd(STREAM, {"id": "x", "data": b"\xff"})
    reader = make_reader()
    await reader.start()
    deliveries = await reader.read()
    assert ["", "x"] == names(deliveries)
    for delivery in deliveries:
        with pytest.raises(JournalError, match="unreadable"):
            delivery.record()


async def test_trim_removes_what_every_group_acknowledged(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """The slowest group keeps the rest, and so does a pending record."""
    add(redis_server, "a", "b", "c", "d")
    night, guard = make_reader(), make_reader(group="guard")
    await night.start()
    deliveries = await night.read()
    await night.ack(entry_ids(deliveries[:2]))
    assert 2 == await night.trim()
    await guard.start()
    assert 0 == await night.trim()
    await night.ack(entry_ids(deliveries[2:]))
    seen = await guard.read()
    assert ["c", "d"] == names(seen)
    await guard.ack(entry_ids(seen[:1]))
    assert 1 == await night.trim()
    await guard.ack(entry_ids(seen[1:]))
    assert 1 == await night.trim()
    assert 0 == await night.trim()


async def test_the_group_is_created_again_after_redis_restarted_empty(
    make_reader: MakeReader, redis_server: RedisServer
) -> None:
    """Reading goes on with new records."""
    reader = make_reader()
    await reader.start()
    assert [] == await reader.read()
    with redis_server.client() as client:
        client.flushall()
    add(redis_server, "a")
    assert ["a"] == names(await reader.read())


async def test_without_redis_every_call_is_a_journal_error(make_reader: MakeReader, redis_server: RedisServer) -> None:
    reader = make_reader()
    await reader.start()
    redis_server.kill()
    for call in (reader.start(), reader.read(), reader.trim(), reader.ack(["1-1"])):
        with pytest.raises(JournalError, match="ConnectionError"):
            await call


async def test_other_refusals_are_journal_errors_too(make_reader: MakeReader, redis_server: RedisServer) -> None:
    """An example: a key of another type."""
    with redis_server.client() as client:
        client.set(STREAM, "not a stream")
    reader = make_reader()
    for call in (reader.start(), reader.read()):
        with pytest.raises(JournalError, match="ResponseError"):
            await call
