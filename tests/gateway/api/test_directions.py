"""Callers of a wrong path get the right one, and probes made for other servers are answered."""

from __future__ import annotations

from pathlib import Path

import pytest

import gateway
from gateway.api.keyfile import new_key
from tests.redis_server import RedisServer
from tests.serving import Serve

CHAT = "POST /v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", CHAT),
        ("/v1/chat/completions/", CHAT),
        ("/v1//chat/completions", CHAT),
        ("/v1/v1/chat/completions", CHAT),
        ("/openai/deployments/x/chat/completions", CHAT),
        ("/models", "GET /v1/models"),
        ("/api/models/", "GET /v1/models"),
        ("/feedback", "POST /v1/feedback"),
    ],
)
async def test_a_404_names_the_route_that_was_probably_meant(serve: Serve, path: str, meant: str) -> None:
    served = await serve()
    for answer in (await served.http.get(path), await served.http.post(path, json={})):
        assert (404, "not_found") == (answer.status_code, answer.json()["error"]["code"])
        assert f"did you mean {meant}?" in answer.json()["error"]["message"]
        assert "base URL of a client ends with /v1" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/nowhere", "/v1/chat", "/<script>", "/v1/chat/completions/x"])
async def test_any_other_404_lists_the_routes_and_repeats_nothing(serve: Serve, path: str) -> None:
    served = await serve()
    answer = await served.http.get(path)
    message = answer.json()["error"]["message"]
    assert 404 == answer.status_code
    assert CHAT in message
    assert "GET /v1/models" in message
    assert "script" not in message
    assert "nowhere" not in message


async def test_the_roots_list_the_apis_routes(serve: Serve) -> None:
    served = await serve()
    for path in ("/", "/v1", "/v1/"):
        answer = await served.http.get(path)
        assert 200 == answer.status_code
        assert CHAT in answer.json()["routes"]
        assert "/v1" in answer.json()["message"]


async def test_a_405_names_the_right_method(serve: Serve) -> None:
    served = await serve()
    answer = await served.http.get("/v1/chat/completions")
    assert (405, "POST") == (answer.status_code, answer.headers["allow"])
    assert "POST" in answer.json()["error"]["message"]


async def test_probes_of_other_servers_are_answered(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()
    assert {"status": "ok"} == (await served.http.get("/ping")).json()
    assert {"version": gateway.__version__} == (await served.http.get("/version")).json()
    assert "ready" == (await served.http.get("/health")).json()["status"]
    served.tgi.knobs.update({"healthy": False})
    assert [503, 200] == [(await served.http.get(path)).status_code for path in ("/health", "/ping")]


async def test_head_is_answered_wherever_get_is(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()
    paths = ["/", "/v1", "/v1/", "/health", "/health/live", "/health/ready", "/ping", "/version", "/metrics", "/docs"]
    for path in [*paths, "/openapi.json", "/v1/models", "/v1/models/", "/v1/models/ratchet"]:
        head, whole = await served.http.head(path), await served.http.get(path)
        assert (path, 200, b"") == (path, head.status_code, head.content)
        assert head.headers["content-type"] == whole.headers["content-type"]
    assert 404 == (await served.http.head("/v1/models/unknown")).status_code


async def test_an_operators_head_is_answered_and_one_without_a_key_is_refused(serve: Serve, tmp_path: Path) -> None:
    key, line = new_key("operator", scopes="admin")
    (tmp_path / "keys").write_text(line)
    served = await serve(api={"keys_file": tmp_path / "keys", "operators": "admin"})
    for path in ("/metrics", "/openapi.json"):
        answer = await served.http.head(path, headers={"Authorization": f"Bearer {key}"})
        assert (path, 200, b"") == (path, answer.status_code, answer.content)
        assert 401 == (await served.http.head(path)).status_code


async def test_with_keys_only_operators_read_the_version(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(new_key("one")[1])
    served = await serve(api={"keys_file": tmp_path / "keys", "operators": "admin"})
    found = {path: (await served.http.get(path)).status_code for path in ("/", "/ping", "/version", "/v1/models")}
    assert {"/": 200, "/ping": 200, "/version": 401, "/v1/models": 401} == found
