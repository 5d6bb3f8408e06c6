"""The shipper's connection confirms only the records that it sent itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.journal.link import StreamLink
from gateway.settings import RedisSettings
from tests.redis_server import RedisServer


@pytest.fixture
async def link(redis_settings: RedisSettings) -> AsyncIterator[StreamLink]:
    link = StreamLink(redis_settings)
    yield link
    await link.close()


async def test_a_closed_connection_is_not_reopened_silently(link: StreamLink, redis_server: RedisServer) -> None:
    """A confirmation over a new connection would not cover the old connection's records."""
    await link.connect()
    assert (1, None) == await link.add([(b"a", b"1")])
    await link.close()
    assert not link.connected
    with pytest.raises(RedisConnectionError):
        await link.confirm()
    with pytest.raises(RedisConnectionError):
        await link.add([(b"b", b"2")])


async def test_a_redis_without_append_only_file_is_asked_once_per_connection(
    link: StreamLink, redis_server: RedisServer
) -> None:
    """It may have one by the next connection."""
    for _ in range(2):
        await link.connect()
        before = link.aof
        assert before is None
        assert [True, True] == [await link.confirm(), await link.confirm()]
        assert link.aof is False
        await link.close()
    with redis_server.client() as client:
        assert 2 == client.info("errorstats")["errorstat_ERR"]["count"]


async def test_records_taken_before_a_refusal_count(link: StreamLink, redis_server: RedisServer) -> None:
    """They are not sent again. Redis refuses from the record on that finds its memory used up."""
    records = [(b"%d" % number, b"x" * 10_000) for number in range(400)]
    await link.connect()
    with redis_server.client() as client:
        redis_server.configure(
            maxmemory_policy="noeviction", maxmemory=client.info("memory")["used_memory"] + 1_500_000
        )
        taken, refusal = await link.add(records)
        assert "OutOfMemoryError" == type(refusal).__name__
        assert 0 < taken < len(records)
        redis_server.drain()
        assert (len(records) - taken, None) == await link.add(records[taken:])
        found = [fields[b"id"] for _, fields in client.xrange("ratchet:journal")]
    assert {record_id for record_id, _ in records} == set(found)


async def test_a_refused_batch_is_taken_later_as_a_whole(link: StreamLink, redis_server: RedisServer) -> None:
    await link.connect()
    redis_server.fill()
    taken, refusal = await link.add([(b"a", b"1"), (b"b", b"2")])
    assert (0, "OutOfMemoryError") == (taken, type(refusal).__name__)
    redis_server.drain()
    assert (2, None) == await link.add([(b"a", b"1"), (b"b", b"2")])


async def test_a_redis_that_became_a_replica_confirms_nothing(
    link: StreamLink, stopped_redis_server: RedisServer
) -> None:
    """After a failover it drops the records it took last; the spool must keep them."""
    stopped_redis_server.start(appendonly="yes")
    await link.connect()
    assert (1, None) == await link.add([(b"a", b"1")])
    with stopped_redis_server.client() as client:
        client.replicaof("127.0.0.1", "1")
        with pytest.raises(ResponseError, match="replica"):
            await link.confirm()
        assert link.aof is None
        client.replicaof("NO", "ONE")
    assert await link.confirm()
    assert link.aof is True
