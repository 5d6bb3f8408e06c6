"""Fixtures of the night's tests: a tiny base model, a fleet of stubs, a policy store on a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.policy import PolicyStore
from gateway.settings import PolicySettings, RedisSettings
from tests.distill.training.tiny import tiny_base
from tests.redis_server import RedisServer
from tests.stubs.process import StubProcess


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny Llama."""
    return tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama that a test may change."""
    return tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def stub_urls() -> Iterator[tuple[str, str]]:
    """URLs of a stub of TGI and a stub of a reward server."""
    tgi, rewards = StubProcess("tests.stubs.tgi"), StubProcess("tests.stubs.reward")
    tgi.start()
    rewards.start()
    yield tgi.url, rewards.url
    tgi.stop()
    rewards.stop()


@pytest.fixture
async def store(tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings) -> AsyncIterator[PolicyStore]:
    """Best of 8 by the base model, until something is published."""
    settings = PolicySettings(n=8, n_max=8, refresh_s=0.05)
    store = PolicyStore(settings, redis_settings, folder=tmp_path / "policy", n_limit=16)
    yield store
    await store.aclose()
