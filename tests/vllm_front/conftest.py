"""Gateways in front of vLLM's real front end, which starts once for all tests of a module."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.serving import Serve, Served, serve
from tests.vllm_front.front import Front, installed

__all__ = ["serve"]

AskVllm = Callable[..., Awaitable[Served]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where vLLM's front end is not installed: it is 3 GB that no other test needs."""
    if installed():
        return
    for item in items:
        if item.path.is_relative_to(__file__.removesuffix("/conftest.py")):
            item.add_marker(pytest.mark.skip(reason="vLLM's front end is not installed: make vllm-front"))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Start vLLM as the shipped profile does: adapters at run time, tools by the hermes parser."""
    arguments = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-lora")
    with Front(tmp_path_factory.mktemp("vllm"), arguments) as running:
        yield running


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Start vLLM with a key and without a tool parser."""
    with Front(tmp_path_factory.mktemp("plain"), ("--api-key", "secret")) as running:
        yield running


@pytest.fixture
def ask_vllm(serve: Serve) -> AskVllm:
    """Return what starts a gateway in front of vLLM servers, with the settings of any group."""

    async def start(*fronts: Front, n: int = 1, **groups: dict[str, object]) -> Served:
        backend = {"kind": "vllm", "urls": tuple(front.url for front in fronts), **groups.pop("backend", {})}
        return await serve(backend=backend, policy={"n": n, **groups.pop("policy", {})}, **groups)

    return start
