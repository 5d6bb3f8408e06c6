"""A fleet of stubs and a base for whole nights."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distill.training.tiny import tiny_base
from tests.stubs.process import StubProcess


@pytest.fixture(scope="module")
def stub_urls() -> Iterator[tuple[str, str]]:
    tgi, rewards = StubProcess("tests.stubs.tgi"), StubProcess("tests.stubs.reward")
    tgi.start()
    rewards.start()
    yield tgi.url, rewards.url
    tgi.stop()
    rewards.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("tiny"))
