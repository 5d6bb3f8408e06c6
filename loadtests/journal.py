"""How fast the journal takes records, and what an append costs a request.

    python -m loadtests.journal [--seconds 3] [--redis URL] [--spool DIR]

Each writer appends one record after another (8 candidates of 1 kB); the table says how many records a second came
through and how long one append took. Without ``--redis`` nothing is listening there, as in an outage: appends do not
depend on Redis, and this shows it. The spool's disk decides the fsync rows, so say which one it was.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from pathlib import Path
from typing import Literal

import structlog

from gateway.journal.record import CompletionRecord, completion_record, encode
from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings
from gateway.types import Answer, Candidate, Outcome, Plan, Sampling, Selection, Timings

_NOBODY = "redis://127.0.0.1:1/0"
_TEXT = "word " * 200
_CONCURRENCIES = (1, 16, 64)


def _record(number: int) -> CompletionRecord:
    candidates = [Candidate(i, i, Answer(_TEXT, "stop", 50, 200), reward=float(i), latency_ms=100.0) for i in range(8)]
    plan = Plan(n_asked=8, n_ordinary=8, seed=1, adapter=None, policy_version=1)
    outcome = Outcome(plan, 8, candidates, candidates[-1:], Selection.SCORED, Timings(), reward_model="m")
    return completion_record(
        id=f"chatcmpl-{number}",
        outcome=outcome,
        messages=[{"role": "user", "content": _TEXT}],
        sampling=Sampling(),
        model="ratchet",
    )


async def _measure(journal: Journal, concurrency: int, seconds: float) -> tuple[float, list[float]]:
    """Records a second, and the milliseconds of each append, building and encoding included."""
    waits_ms: list[float] = []
    end = time.perf_counter() + seconds

    async def write() -> None:
        while (start := time.perf_counter()) < end:
            await journal.append(_record(len(waits_ms)))
            waits_ms.append((time.perf_counter() - start) * 1000)

    start = time.perf_counter()
    await asyncio.gather(*(write() for _ in range(concurrency)))
    return len(waits_ms) / (time.perf_counter() - start), sorted(waits_ms)


async def _run(seconds: float, url: str, spool: Path) -> None:
    n = 2_000
    start = time.perf_counter()
    for number in range(n):
        encode(_record(number))
    print(f"building and encoding a record: {(time.perf_counter() - start) / n * 1000:.3f} ms")
    print(f"{'':10}{'writers':>8}{'records/s':>11}{'p50 ms':>8}{'p99 ms':>8}{'a commit':>10}")
    modes: tuple[Literal["fsync", "relaxed"], ...] = ("fsync", "relaxed")
    for durability in modes:
        for concurrency in _CONCURRENCIES:
            journal = Journal(JournalSettings(spool_dir=spool, durability=durability), RedisSettings(url=url))
            await journal.start()
            rate, waits_ms = await _measure(journal, concurrency, seconds)
            p50, p99 = waits_ms[len(waits_ms) // 2], waits_ms[len(waits_ms) * 99 // 100]
            shared = journal.stats.appended_records / journal.stats.commits
            print(f"{durability:10}{concurrency:8}{rate:11.0f}{p50:8.2f}{p99:8.2f}{shared:10.1f}")
            await journal.aclose(drain_s=60)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Measure the journal.")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row of the table")
    parser.add_argument("--redis", default=_NOBODY, help="URL of a Redis to ship to meanwhile")
    parser.add_argument("--spool", type=Path, default=Path(), help="folder on the disk to measure")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(dir=arguments.spool) as spool:
        asyncio.run(_run(arguments.seconds, arguments.redis, Path(spool)))


if __name__ == "__main__":
    main()
