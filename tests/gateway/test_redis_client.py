"""Servers that answer nonsense at Redis's address harm no caller and no task, and cause no unexpected error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.api.counters import CountersUnavailable, SharedCounters
from gateway.api.keyfile import Limits
from gateway.errors import JournalError
from gateway.journal.reader import JournalReader
from gateway.journal.stream import START, StreamTail
from gateway.journal.writer import Journal
from gateway.policy import PolicyStore
from gateway.redis_client import connect
from gateway.settings import JournalSettings, PolicySettings, RedisSettings
from tests.gateway.backend.rawserver import listening
from tests.gateway.journal.records import completion
from tests.waiting import until

HELLO = b"-ERR unknown command\r\n"  # RESP 3 is declined, as old servers do
SAYINGS = [
    b"",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    bytes(range(256)),
    b":abc\r\n",
    b"$abc\r\n",
    b"$-5\r\nhello\r\n",
    b"*abc\r\n",
    b"*1\r\n" * 10_000,
    b":5\r\n",
    b"*2\r\n:1\r\n$1\r\na\r\n",
    b"*0\r\n",
    b"+hello\r\n",
    b"-\r\n",
    b"$4\r\n\xff\xfe\xfd\xfc\r\n",
]
pytestmark = pytest.mark.parametrize("saying", SAYINGS, ids=lambda saying: repr(saying[:16]))


@pytest.fixture
async def settings(saying: bytes) -> AsyncIterator[RedisSettings]:
    """Start a server that sends these bytes to every command, after a handshake as of Redis."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(65_536):
            known = [b"HELLO", b"CLIENT", b"SELECT"]
            shaken = sum(request.count(b"\r\n" + word + b"\r\n") for word in known)
            writer.write(b"+OK\r\n" * shaken if shaken else saying)
            if not saying:
                return

    async with listening(talk) as url:
        yield RedisSettings(url=url.replace("http", "redis"), timeout_s=0.2)


async def test_the_policy_stays_and_is_read_again(settings: RedisSettings, tmp_path: Path) -> None:
    store = PolicyStore(PolicySettings(n=3, refresh_s=0.01), settings, folder=tmp_path, n_limit=16)
    await store.start()
    try:
        await store.refresh()
        assert (3, "settings") == (store.current.n, store.source)
        assert store.last_error is not None
        assert store._task is not None
        assert not store._task.done()
    finally:
        await store.aclose()


async def test_a_gateway_counts_alone(settings: RedisSettings) -> None:
    async with connect(settings, timeout_s=0.2) as redis:
        counters = SharedCounters(redis, key_prefix="test", lease_s=1.0)
        with pytest.raises(CountersUnavailable):
            await counters.enter("a", Limits(requests_per_minute=1), "lease")


async def test_records_stay_in_the_spool(settings: RedisSettings, tmp_path: Path) -> None:
    journal = Journal(JournalSettings(spool_dir=tmp_path / "spool"), settings)
    await journal.start()
    try:
        assert await journal.append(completion())
        await until(lambda: journal.stats.last_error is not None)
        assert 1 == journal.stats.lag_records
        assert not journal._shipping.done()
    finally:
        await journal.aclose(drain_s=0)


async def test_the_nights_readers_find_nothing_or_raise(settings: RedisSettings) -> None:
    reader, tail = JournalReader(settings, group="g", consumer="c"), StreamTail(settings)
    try:
        for reading in (reader.read(), tail.read(START)):
            with contextlib.suppress(JournalError):
                assert [] == await reading
    finally:
        await reader.aclose()
        await tail.aclose()
