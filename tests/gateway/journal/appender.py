"""A worker process that appends records until it is killed and prints each id once the record is durable.

python -m tests.gateway.journal.appender SPOOL REDIS_URL fsync|relaxed PREFIX
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

import structlog

from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings
from tests.gateway.journal.records import completion


async def _append_until_killed(journal: Journal, prefix: str, lane: int) -> None:
    for number in itertools.count():
        record_id = f"{prefix}-{lane}-{number}"
        if await journal.append(completion(record_id)):
            # One write: a kill cannot tear the line.
            sys.stdout.buffer.write(f"{record_id}\n".encode())
            sys.stdout.buffer.flush()


async def _main(spool: str, url: str, durability: str, prefix: str) -> None:
    settings = JournalSettings.model_validate({"spool_dir": Path(spool), "durability": durability})
    journal = Journal(settings, RedisSettings(url=url, timeout_s=1.0), segment_bytes=50_000)
    await journal.start()
    await asyncio.gather(*(_append_until_killed(journal, prefix, lane) for lane in range(8)))


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the ids
    asyncio.run(_main(*sys.argv[1:]))
