"""Trimming removes acknowledged entries in small steps; lost entries are counted from Redis's own counters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.journal import retention
from gateway.journal.retention import Place
from gateway.journal.stream import read_entries
from tests.redis_server import RedisServer

STREAM = "ratchet:journal"


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_server.url, protocol=2) as client:
        yield client


async def fill(client: Redis, count: int) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(count):
        pipe.xadd(STREAM, {"id": str(number), "data": "x"})
    await pipe.execute()


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 1_234])
async def test_a_trim_removes_exactly_the_acknowledged_entries_in_steps(
    count: int, client: Redis, redis_server: RedisServer
) -> None:
    """Whole nodes of the stream in steps of at most 500, then the rest of the last node."""
    await client.xgroup_create(STREAM, "night", id="0", mkstream=True)
    await fill(client, count + 5)
    found: Any = await client.xreadgroup("night", "one", {STREAM: ">"}, count=count + 1)
    ids = [entry_id for entry_id, _ in found[0][1]]
    await client.xack(STREAM, "night", *ids[:count]) if count else None
    before = _calls(redis_server)
    assert count == await retention.trim_acknowledged(client, STREAM)
    assert 5 == await client.xlen(STREAM)
    assert count // 500 + 1 <= _calls(redis_server) - before <= count // 500 + 3


def _calls(server: RedisServer) -> int:
    with server.client() as plain:
        found: Any = plain.info("commandstats")
    return int(found.get("cmdstat_xtrim", {}).get("calls", 0))


async def test_without_a_group_nothing_is_trimmed(client: Redis) -> None:
    await fill(client, 3)
    assert 0 == await retention.trim_acknowledged(client, STREAM)
    assert 3 == await client.xlen(STREAM)


@pytest.mark.parametrize(
    ("start", "end", "delivered", "lost", "read"),
    [
        (Place(0, 0, False, "0-0"), Place(10, 0, False, "9-0"), 10, 0, 10),
        (Place(0, 0, False, "0-0"), Place(11, 0, False, "9-0"), 10, 1, 11),
        (Place(20, 20, False, "5-0"), Place(30, 30, False, "9-0"), 9, 1, 30),
        (Place(20, 25, False, "5-0"), Place(30, 30, False, "9-0"), 9, 0, 30),
        (Place(20, None, False, "5-0"), Place(99, 30, False, "9-0"), 9, 0, 99),
        (Place(20, 20, True, "5-0"), Place(20, 29, True, "9-0"), 9, 0, 29),
        (Place(None, None, False, "5-0"), Place(None, None, False, "9-0"), 9, 0, None),
        (Place(40, 40, False, "5-0"), Place(3, 3, False, "9-0"), 3, 0, 3),
    ],
    ids=["none", "one", "one of later", "more counted than gone", "unknown before", "held back", "redis 6", "wiped"],
)
def test_entries_that_left_undelivered_are_lost(
    start: Place, end: Place, delivered: int, lost: int, read: int | None
) -> None:
    assert (lost, read) == (end.lost_since(start, delivered), end.read_now(start, delivered))


def test_entries_are_deleted_with_or_without_a_group(redis_server: RedisServer) -> None:
    """Any number of them, in any order; some may be missing."""
    with redis_server.client() as plain:
        ids = [str(plain.xadd(STREAM, {"id": str(n), "data": "x"}), "ascii") for n in range(1_100)]
        retention.delete_entries(plain, STREAM, "night", ids[:3])
        plain.xgroup_create(STREAM, "night", id="0", entries_read=3)
        plain.xreadgroup("night", "one", {STREAM: ">"}, count=7)
        retention.delete_entries(plain, STREAM, "night", ids[1_099:4:-1])
        assert ["3", "4"] == [entry.record_id for entry in read_entries(plain, STREAM)]
        (group,) = plain.xinfo_groups(STREAM)
        assert (1_100, 2) == (group["entries-read"], group["pending"])


@pytest.mark.parametrize(("length", "full"), [(89, False), (90, True), (91, True)])
async def test_a_stream_is_full_near_its_limit(length: int, full: bool, client: Redis) -> None:
    await fill(client, length)
    assert full is await retention.is_full(client, STREAM, 100)


@pytest.mark.parametrize(
    ("length", "share", "full"),
    [(999, 1.2, False), (1_000, 1.2, True), (1_000, 0.95, True), (1_000, 0.8, False), (1_000, None, False)],
)
async def test_a_redis_is_full_near_its_memory_limit_if_the_stream_can_free_some(
    length: int, share: float | None, full: bool, client: Redis
) -> None:
    """Without a limit it never is; collecting frees only the stream's memory."""
    await fill(client, length)
    if share is not None:
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory", int(used / share))
    assert full is await retention.is_full(client, STREAM, 1_000_000)
