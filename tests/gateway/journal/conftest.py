"""A journal with this test's own spool and server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings

MakeJournal = Callable[..., Journal]


@pytest.fixture
async def make_journal(tmp_path: Path, redis_settings: RedisSettings) -> AsyncIterator[MakeJournal]:
    """Yield a function that makes journals (not started) with one spool; close them after the test."""
    journals: list[Journal] = []

    def make(durability: str = "fsync", redis: RedisSettings = redis_settings, **options: Any) -> Journal:
        settings = JournalSettings.model_validate({"spool_dir": tmp_path / "spool", "durability": durability})
        journals.append(Journal(settings, redis, **options))
        return journals[-1]

    yield make
    for journal in journals:
        await journal.aclose(drain_s=0.0)


@pytest.fixture(autouse=True)
def _fail_on_blocking_calls() -> Iterator[None]:
    """Fail a test in which the journal makes a blocking call on the event loop."""
    with blockbuster_ctx("gateway.journal") as blockbuster:
        for function in blockbuster.functions.values():
            # Logs the traceback of a programming error, which reads source files.
            function.can_block_in("gateway/journal/writer.py", "_shipper_ended")
            # Coverage takes a lock of its own in any function.
            function.can_block_in("coverage/collector.py", "lock_data")
        yield
