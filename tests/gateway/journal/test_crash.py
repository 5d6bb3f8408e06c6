"""Worker processes are killed with SIGKILL: no durable record is lost."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.journal.reader import JournalReader
from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[3]
AWAY = "redis://127.0.0.1:1/0"


def start_worker(spool: Path, url: str, durability: str, prefix: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.gateway.journal.appender", str(spool), url, durability, prefix]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def kill_after(worker: subprocess.Popen[bytes], n_records: int) -> list[str]:
    """Kill the worker after some records; return every id it had printed."""
    assert worker.stdout is not None
    acknowledged = [worker.stdout.readline() for _ in range(n_records)]
    worker.kill()
    acknowledged += worker.stdout.readlines()
    worker.stdout.close()
    assert -9 == worker.wait()
    return [line.decode().strip() for line in acknowledged]


async def read_everything(redis: RedisSettings) -> list[str]:
    reader = JournalReader(redis, group="test", consumer="test")
    await reader.start()
    ids: list[str] = []
    while deliveries := await reader.read():
        for delivery in deliveries:
            assert delivery.record_id == delivery.record().id
        ids += [delivery.record_id for delivery in deliveries]
        await reader.ack([delivery.entry_id for delivery in deliveries])
    await reader.aclose()
    return ids


@pytest.mark.parametrize("durability", ["fsync", "relaxed"])
@pytest.mark.parametrize("redis_is_there", [True, False])
async def test_two_killed_workers_lose_nothing(
    durability: str,
    redis_is_there: bool,
    tmp_path: Path,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
) -> None:
    """All durable records are in Redis after the next start, and a reader gets each once."""
    url = redis_server.url if redis_is_there else AWAY
    workers = [start_worker(tmp_path, url, durability, name) for name in ("one", "two")]
    acknowledged = [
        name for ids in await asyncio.gather(*(asyncio.to_thread(kill_after, w, 300) for w in workers)) for name in ids
    ]
    assert len(acknowledged) >= 600

    journal = Journal(JournalSettings(spool_dir=tmp_path), redis_settings)
    await journal.start()
    assert await journal.drained(60)
    await journal.aclose()

    arrived = await read_everything(redis_settings)
    assert set() == set(acknowledged) - set(arrived)
    assert len(set(arrived)) == len(arrived)
    assert ["lock"] == os.listdir(tmp_path)


async def test_redis_and_worker_killed_together_lose_nothing(
    tmp_path: Path, stopped_redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """With an append-only file in Redis all records are there afterwards, acknowledged by Redis or not."""
    stopped_redis_server.start(appendonly="yes", appendfsync="everysec")
    worker = start_worker(tmp_path, stopped_redis_server.url, "fsync", "one")
    acknowledged = await asyncio.to_thread(kill_after, worker, 600)
    stopped_redis_server.restart()

    journal = Journal(JournalSettings(spool_dir=tmp_path), redis_settings)
    await journal.start()
    assert await journal.drained(60)
    await journal.aclose()

    arrived = await read_everything(redis_settings)
    assert set() == set(acknowledged) - set(arrived)
    assert len(set(arrived)) == len(arrived)
