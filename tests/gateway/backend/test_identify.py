"""A server is identified by its routes, and a setting that differs is reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.backend.identify import Identity, contradiction, identify
from tests.gateway.backend.conftest import PoolOf, prompt

TGI = {"/info": {"router": "text-generation-router", "version": "3.3.7", "max_total_tokens": 2048}}
VLLM = {
    "/version": {"version": "0.33.0"},
    "/v1/models": {"data": [{"id": "base", "parent": None, "max_model_len": 4096}]},
}
SGLANG = {"/get_model_info": {"model_path": "m", "is_generation": True}, "/v1/models": VLLM["/v1/models"]}
LLAMACPP = {
    "/props": {"default_generation_settings": {"n_ctx": 1024}, "total_slots": 8, "build_info": "b1-x"},
    "/lora-adapters": [],
}
ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
}
NOTHING: dict[str, Any] = {}


def asked(answers: Mapping[str, Any]) -> Any:
    async def ask(path: str) -> Any:
        return answers.get(path)

    return ask


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (TGI, Identity("tgi", "text-generation-inference 3.3.7", 2048)),
        (VLLM, Identity("vllm", "vLLM 0.33.0", 4096)),
        (SGLANG, Identity("vllm", "SGLang", 4096)),
        (LLAMACPP, Identity("llamacpp", "llama.cpp b1-x", 1024, 8)),
        (NOTHING, None),
        ({"/info": {"model_type": "embedding"}}, None),
        ({"/info": "<html>", "/props": [1], "/version": 7, "/v1/models": {"data": 3}}, None),
        ({"/version": {"version": "0.33.0"}}, Identity("vllm", "vLLM 0.33.0")),
        ({"/info": {"max_total_tokens": True}}, Identity("tgi", "text-generation-inference")),
    ],
)
async def test_a_server_is_identified_by_the_routes_of_its_kind(
    answers: Mapping[str, Any], expected: Identity | None
) -> None:
    assert expected == await identify(asked(answers))


@pytest.mark.parametrize("kind", ["tgi", "vllm", "llamacpp"])
@pytest.mark.parametrize("answers", [TGI, VLLM, SGLANG, LLAMACPP], ids=["tgi", "vllm", "sglang", "llamacpp"])
async def test_a_setting_that_differs_from_the_server_is_described_in_words(
    kind: str, answers: Mapping[str, Any]
) -> None:
    found = await identify(asked(answers))
    assert found is not None
    told = contradiction(kind, found)
    assert (found.kind == kind) == (told is None)
    assert told is None or (found.name in told and f"set it to {found.kind}" in told)
    assert contradiction("auto", found) is None


class Server:
    """A server with these routes, which records its draws."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.draws: list[Any] = []
        self.answers = dict(answers)
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        app.router.add_post("/{path:.*}", self._post)
        self.http = TestServer(app)

    async def _get(self, request: web.Request) -> web.Response:
        if request.path == "/health":
            return web.Response()
        if request.path not in self.answers:
            return web.Response(status=404)
        return web.json_response(self.answers[request.path])

    async def _post(self, request: web.Request) -> web.Response:
        if request.path == "/v1/chat/completions":
            self.draws.append(await request.json())
            return web.json_response(ANSWER)
        return web.json_response({})


@pytest.mark.parametrize(
    ("answers", "model"),
    [(TGI, "tgi"), (VLLM, "base"), (SGLANG, "base"), (LLAMACPP, "default"), (NOTHING, "tgi")],
    ids=["tgi", "vllm", "sglang", "llamacpp", "unknown"],
)
async def test_by_default_each_server_is_called_by_its_kind(
    pool_of: PoolOf, answers: Mapping[str, Any], model: str
) -> None:
    server = Server(answers)
    async with server.http:
        pool = pool_of(str(server.http.make_url("")))
        await pool.complete(prompt(), seed=1, replica=0)
        assert model == server.draws[0]["model"]


async def test_a_server_that_is_not_identified_yet_is_asked_again(
    pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.backend.kind._ASK_AGAIN_S", 0.0)
    server = Server({})
    async with server.http:
        pool = pool_of(str(server.http.make_url("")))
        await pool.complete(prompt(), seed=1, replica=0)
        server.answers |= VLLM
        await pool.complete(prompt(), seed=1, replica=0)
        assert ["tgi", "base"] == [draw["model"] for draw in server.draws]


@pytest.mark.parametrize(("kind", "ready"), [("vllm", False), ("auto", True), ("tgi", True)])
async def test_readiness_reports_another_kind_and_the_limits(pool_of: PoolOf, kind: str, ready: bool) -> None:
    server = Server(TGI)
    async with server.http:
        found = await pool_of(str(server.http.make_url("")), kind=kind).readiness()
    assert (ready, not ready) == (found.ready, "text-generation-inference 3.3.7" in found.detail)
    assert {"max_tokens": 2048} in found.facts["limits"].values()


async def test_readiness_reports_a_fleet_of_two_kinds(pool_of: PoolOf) -> None:
    one, other = Server(TGI), Server(VLLM)
    async with one.http, other.http:
        found = await pool_of(*(str(server.http.make_url("")) for server in (one, other))).readiness()
    assert (True, True) == (found.ready, "another kind" in found.detail)
