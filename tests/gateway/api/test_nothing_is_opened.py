"""A name in a request is looked up or sent on, and never opened as a path, a URL or a model."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest

from gateway.telemetry import MULTIPROCESS_DIR
from tests.redis_server import RedisServer
from tests.serving import Serve

_MARK = "canary-7f3a"
_NAMES = [
    f"/etc/{_MARK}",
    f"../../{_MARK}",
    f"file:///etc/{_MARK}",
    f"http://127.0.0.1:9/{_MARK}",
    f"s3://bucket/{_MARK}",
    f"hub-user/{_MARK}",
    f"{_MARK}\x00.safetensors",
    f"%2e%2e%2f{_MARK}",
    f"${{jndi:ldap://127.0.0.1/{_MARK}}}",
    f"`touch {_MARK}`",
    f"\r\nX-Injected: {_MARK}",
]
_seen: list[str] = []
_watching = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in {"open", "os.listdir", "os.scandir", "subprocess.Popen", "socket.getaddrinfo", "import"}:
        _seen.append(f"{event} {arguments!r}")


@pytest.fixture(scope="module", autouse=True)
def hook() -> None:
    sys.addaudithook(_hook)  # a hook can never be removed


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record everything that this process opens, lists, starts, resolves or imports while a test runs."""
    global _watching
    monkeypatch.delenv(MULTIPROCESS_DIR, raising=False)
    _seen.clear()
    _watching = True
    yield _seen
    _watching = False


def test_the_watch_sees_what_it_watches_for(opened: list[str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        (tmp_path / _MARK).open()
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo(f"{_MARK}.invalid", 80)
    assert 2 == sum(_MARK in entry for entry in opened)


@pytest.mark.parametrize("name", _NAMES)
async def test_no_name_from_a_caller_is_opened(
    serve: Serve, redis_server: RedisServer, opened: list[str], name: str
) -> None:
    served = await serve()
    content = [{"type": "image_url", "image_url": {"url": name}}]
    bodies: list[dict[str, Any]] = [
        {"model": name},
        {"messages": [{"role": "user", "content": content}]},
        {"messages": [{"role": "user", "content": name, "name": name}]},
        {"user": name, "metadata": {"path": name}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"$ref": name}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"$ref": name}}}},
        {"prompt_cache_key": name, "safety_identifier": name},
        {"adapter": name},
        {"audio": {"voice": name}},
    ]
    statuses = [(await served.chat(best_of=1, **body)).status_code for body in bodies]
    statuses.append((await served.http.get("/v1/models/" + quote(name))).status_code)
    statuses.append((await served.http.post("/v1/feedback", json={"id": name, "rating": 1})).status_code)
    assert {200, 400, 404} >= set(statuses)
    assert [404, 400, 400] == [statuses[0], statuses[1], statuses[7]]
    assert [] == [entry for entry in opened if _MARK in entry]
    assert {"tgi"} == {orjson.loads(request.body)["model"] for request in served.tgi.state.requests}
