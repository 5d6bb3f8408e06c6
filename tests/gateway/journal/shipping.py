"""Helpers for the shipper's tests: append records, wait for failures, read the stream."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.journal.stream import StreamEntry, parse_entries
from gateway.journal.writer import Journal
from tests.gateway.journal.records import completion
from tests.redis_server import RedisServer
from tests.waiting import until

STREAM = "ratchet:journal"
PATIENCE_S = 60.0


def arrived(server: RedisServer) -> list[str]:
    return [entry.record_id for entry in entries_of(server)]


def entries_of(server: RedisServer) -> list[StreamEntry]:
    """Read the stream by the client: ``read_entries`` is gateway code, which may not block in an async test."""
    with server.client() as client:
        found: Any = client.xrange(STREAM)
    return parse_entries(found)


async def append(journal: Journal, *names: str) -> None:
    assert all(await asyncio.gather(*(journal.append(completion(name)) for name in names)))


async def until_failing(journal: Journal, error: str) -> None:
    """Wait until the shipper has had this error."""
    await until(lambda: journal.stats.last_error == error)
