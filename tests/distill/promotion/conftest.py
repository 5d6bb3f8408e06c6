"""A policy store on a real server, as the night and the guard use it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.policy import PolicyStore
from gateway.settings import PolicySettings, RedisSettings
from tests.redis_server import RedisServer


@pytest.fixture
async def store(tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings) -> AsyncIterator[PolicyStore]:
    """Best of 8 by the base model, until something is published."""
    settings = PolicySettings(n=8, n_max=8, refresh_s=0.05)
    store = PolicyStore(settings, redis_settings, folder=tmp_path / "policy", n_limit=16)
    yield store
    await store.aclose()
