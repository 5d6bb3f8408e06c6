"""The replicas load new adapters one after the other, under traffic, and no request fails."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx2
import pytest

from gateway.embedded.control import restart_backend
from gateway.embedded.stack import EmbeddedStack
from gateway.errors import NotReady
from tests.gateway.embedded.adapters import random_adapter

NAME = "rft-20261122-0123456789ab"


def test_an_adapter_is_loaded_under_traffic_and_no_request_fails(tmp_path: Path) -> None:
    statuses: list[int] = []
    ended = threading.Event()

    def ask(url: str) -> None:
        body = {"model": "ratchet", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}
        with httpx2.Client(trust_env=False, timeout=300) as client:
            while not ended.is_set():
                statuses.append(client.post(f"{url}/v1/chat/completions", json=body | {"best_of": 2}).status_code)

    with EmbeddedStack(tmp_path) as stack:
        callers = [threading.Thread(target=ask, args=(stack.url,)) for _ in range(3)]
        for caller in callers:
            caller.start()
        (tmp_path / "adapters").mkdir()
        random_adapter(tmp_path / "adapters" / f"{NAME}.gguf", seed=1)
        result = restart_backend(tmp_path, timeout_s=300)
        (tmp_path / "adapters" / "rft-20261122-ba0000000000.gguf").write_bytes(b"no adapter")
        with pytest.raises(NotReady, match="It serves what it served before"):
            restart_backend(tmp_path, timeout_s=300)
        ended.set()
        for caller in callers:
            caller.join()
    assert result.endswith(f"serve {NAME}")
    assert {200} == set(statuses)


def test_a_missing_stack_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="no embedded stack runs"):
        restart_backend(tmp_path, timeout_s=1)


def test_a_path_too_long_for_a_socket_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="too long for a socket"):
        restart_backend(tmp_path / ("x" * 120), timeout_s=1)
