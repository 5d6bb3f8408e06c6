"""Fixtures: a gateway that sends its spans to a collector in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import pytest

from tests.serving import Serve
from tests.stubs.collector import CollectorStub


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CollectorStub]:
    """Start a collector; the SDK sends ended spans at once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    async with CollectorStub() as stub:
        yield stub


@pytest.fixture
def serve_traced(serve: Serve, collector: CollectorStub) -> Serve:
    """``serve``, with traces."""
    return partial(serve, tracing={"endpoint": collector.url})
