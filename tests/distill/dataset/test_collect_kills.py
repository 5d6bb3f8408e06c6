"""Collecting by processes that are killed."""

from __future__ import annotations

import asyncio
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from distill.dataset.collect import collect
from distill.settings import DatasetSettings
from gateway.journal.record import CompletionRecord
from gateway.settings import RedisSettings
from tests.distill.dataset.collector import POINTS
from tests.distill.dataset.records import STREAM, archived, ids, pending, publish, races
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[3]


def start_child(dataset: DatasetSettings, url: str, point: str, times: int) -> subprocess.Popen[bytes]:
    module = "tests.distill.dataset.collector"
    command = [sys.executable, "-m", module, str(dataset.archive_dir), url, point, str(times)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def run_child(dataset: DatasetSettings, url: str, point: str, times: int) -> int:
    child = start_child(dataset, url, point, times)
    child.communicate()
    return child.returncode


@pytest.mark.parametrize("point", [f"{when} {what}" for what in POINTS for when in ("before", "after")])
async def test_killed_at_any_point_each_record_has_one_row(
    point: str, redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Batches span two days and hold an unreadable record."""
    records = races(60, days=2)
    with redis_server.client() as client:
        publish(client, redis_settings, [*records[:30], b"garbage", *records[30:]])
        times = 1 if point.endswith("trim") else 2
        assert -signal.SIGKILL == await asyncio.to_thread(run_child, dataset, redis_server.url, point, times)
        assert 1 == max(Counter(archived(dataset)).values(), default=1)
        done = await collect(redis_settings, dataset)
        assert (0, 0) == (pending(client), client.xlen(STREAM))
    assert ids(records) == archived(dataset)
    assert 1 == len(list((dataset.archive_dir / "_quarantine").iterdir()))
    assert [] == list(dataset.archive_dir.rglob(".part-*"))
    assert done.collected <= 60


async def test_after_kills_at_random_moments_each_record_has_one_row(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """While records arrive, some of them twice, and two collectors run at once."""
    chance = random.Random(0)
    everything: list[CompletionRecord] = []
    with redis_server.client() as client:
        for _ in range(3):
            fresh = races(300, days=3, start=len(everything))
            publish(client, redis_settings, [*fresh, *chance.sample(everything, min(50, len(everything)))])
            everything += fresh
            children = [start_child(dataset, redis_server.url, "never", 0) for _ in range(2)]
            seen = await asyncio.to_thread(kill_while_archiving, children, chance)
            assert seen
        await collect(redis_settings, dataset)
        assert (0, 0) == (pending(client), client.xlen(STREAM))
    assert ids(everything) == archived(dataset)


def kill_while_archiving(children: list[subprocess.Popen[bytes]], chance: random.Random) -> bool:
    """Kill -9 both, a moment after whichever got the archive has written its first batch."""
    outputs = [child.stderr for child in children if child.stderr is not None]
    pipes = [output.fileno() for output in outputs]
    seen = bool(select.select(pipes, [], [], 60)[0])
    time.sleep(chance.uniform(0, 0.05))
    for child in children:
        child.kill()
        child.communicate()
    return seen
