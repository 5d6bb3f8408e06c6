"""A journal on this test's own spool and server."""

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
    """Makes journals (not started) that share a spool; they are closed after the test."""
    journals: list[Journal] = []

    def make(durability: str = "fsync", redis: RedisSettings = redis_settings, **options: Any) -> Journal:
        settings = JournalSettings.model_validate({"spool_dir": tmp_path / "spool", "durability": durability})
        journals.append(Journal(settings, redis, **options))
        return journals[-1]

    yield make
    for journal in journals:
        await journal.aclose(drain_s=0.0)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_event_loop() -> Iterator[None]:
    """A blocking call of the journal on the event loop fails its test."""
    with blockbuster_ctx("gateway.journal") as blockbuster:
        for function in blockbuster.functions.values():
            # Logs a programming mistake with its traceback, for which source files are read: once, and worth it.
            function.can_block_in("gateway/journal/writer.py", "_shipper_ended")
            # Coverage takes a lock of its own wherever it happens to be.
            function.can_block_in("coverage/collector.py", "lock_data")
        yield
