"""Measure the journal's throughput, and the time of an append.

    python -m loadtests.journal [--seconds 3] [--redis URL] [--spool DIR]

Each writer appends one record after another (8 candidates of 1 kB); the table has the records per second and the
time of one append. Without ``--redis`` there is no Redis, as in an outage: appends do not depend on it. The spool's
disk decides the fsync rows, so state which one it was. Without ``--spool`` it is the checkout's, in ``data/``, which
git ignores: /tmp may be memory, where an fsync costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from gateway.journal.record import CompletionRecord, completion_record, encode
from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings
from gateway.types import Answer, AnswerRequest, Arm, Candidate, Outcome, Plan, Selection, Timings
from loadtests.stack import machine, quiet_logs
from loadtests.tables import journal as journal_table
from loadtests.tables import titled

FOLDER = Path("data")
_NO_REDIS = "redis://127.0.0.1:1/0"
_TEXT = "word " * 200
_CONCURRENCIES = (1, 16, 64)


def _record(number: int) -> CompletionRecord:
    candidates = [Candidate(i, i, Answer(_TEXT, "stop", 50, 200), reward=float(i), latency_ms=100.0) for i in range(8)]
    plan = Plan(n_asked=8, n_ordinary=8, seed=1, arm=Arm("stable", None, 8), policy_version=1)
    outcome = Outcome(plan, 8, candidates, candidates[-1:], Selection.SCORED, Timings(), reward_model="m")
    request = AnswerRequest("ratchet", [{"role": "user", "content": _TEXT}])
    return completion_record(request, outcome, id=f"chatcmpl-{number}")


async def _measure(journal: Journal, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Return records per second, and the milliseconds of each append, building and encoding included."""
    waits_ms: list[float] = []
    end = time.perf_counter() + seconds

    async def write() -> None:
        while True:  # at least one record each, on a slow machine too
            start = time.perf_counter()
            await journal.append(_record(len(waits_ms)))
            waits_ms.append((time.perf_counter() - start) * 1000)
            if time.perf_counter() >= end:
                return

    start = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(concurrency)))
    return len(waits_ms) / (time.perf_counter() - start), sorted(waits_ms)


async def _rows(seconds: float, url: str, spool: Path) -> AsyncIterator[dict[str, object]]:
    modes: tuple[Literal["fsync", "relaxed"], ...] = ("fsync", "relaxed")
    for durability in modes:
        for concurrency in _CONCURRENCIES:
            journal = Journal(JournalSettings(spool_dir=spool, durability=durability), RedisSettings(url=url))
            await journal.start()
            rate, waits_ms = await _measure(journal, concurrency, seconds)
            yield {
                "durability": durability,
                "writers": concurrency,
                "records_per_s": rate,
                "p50_ms": waits_ms[len(waits_ms) // 2],
                "p99_ms": waits_ms[len(waits_ms) * 99 // 100],
                "records_per_commit": journal.stats.appended_records / journal.stats.commits,
            }
            await journal.aclose(drain_s=0.0 if url == _NO_REDIS else 60.0)


def _new_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=parent, prefix="ratchet-journal-")


async def run(seconds: float, *, redis: str = _NO_REDIS, folder: Path = FOLDER) -> dict[str, object]:
    """Measure the encoding of a record, and the throughput at each number of writers, with and without fsync.

    Args:
        seconds: Length of each row's measurement.
        redis: URL of a Redis to ship to meanwhile.
        folder: Folder on the disk to measure, not in memory; made if it is missing.
    """
    n = 2_000
    start = time.perf_counter()
    for number in range(n):
        encode(_record(number))
    encode_ms = (time.perf_counter() - start) / n * 1000
    quiet_logs(logging.ERROR)
    with _new_folder(folder) as spool:
        return {"encode_ms": encode_ms, "rows": [row async for row in _rows(seconds, redis, Path(spool))]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the journal.")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row of the table")
    parser.add_argument("--redis", default=_NO_REDIS, help="URL of a Redis to ship to meanwhile")
    parser.add_argument("--spool", type=Path, default=FOLDER, help=f"folder on the disk to measure; {FOLDER}")
    options = parser.parse_args()
    found = asyncio.run(run(options.seconds, redis=options.redis, folder=options.spool))
    print(titled(machine(), journal_table(found)))


if __name__ == "__main__":
    main()
