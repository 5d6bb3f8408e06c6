"""The stub's other routes, its keys and its permits."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub
from tests.test_stubs.conftest import QUESTION, Ask


@pytest.mark.parametrize("path", ["/health", "/ping", "/"])
async def test_health_is_an_empty_200_or_a_503(stub: TgiStub, http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(path) as response:
        assert (200, b"") == (response.status, await response.read())
    stub.knobs.healthy = False
    async with http.get(path) as response:
        assert 503 == response.status
        assert {"error": "unhealthy", "error_type": "healthcheck"} == await response.json()


async def test_models_and_info_never_list_adapters(stub: TgiStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.adapters = ("rft-1",)
    async with http.get("/v1/models") as models, http.get("/info") as info:
        assert ["stub/base"] == [model["id"] for model in (await models.json())["data"]]
        assert "rft-1" not in await info.text()


async def test_metrics_count_a_chat_call_twice_and_a_generate_call_once(ask: Ask, http: aiohttp.ClientSession) -> None:
    await ask()
    await http.post("/generate", json={"inputs": "hello"})
    async with http.get("/metrics") as response:
        assert "tgi_request_count 3" in (await response.text()).splitlines()


async def test_an_unknown_path_is_404_and_a_wrong_method_405(http: aiohttp.ClientSession) -> None:
    async with http.get("/nowhere") as nowhere, http.get("/generate") as wrong, http.get("/health?a=b") as query:
        assert (404, 405, 200) == (nowhere.status, wrong.status, query.status)


async def test_an_api_key_guards_the_generation_routes_only_and_a_wrong_one_is_a_bare_401(
    stub: TgiStub, http: aiohttp.ClientSession
) -> None:
    stub.knobs.api_key = "Secret"
    for authorization, status in (("Bearer secret", 200), ("Bearer other", 401), ("", 401)):
        headers = {"Authorization": authorization}
        async with http.post("/v1/chat/completions", json={"messages": QUESTION}, headers=headers) as response:
            assert status == response.status
            assert (status == 401) == (await response.read() == b"")
    async with http.get("/health") as health, http.get("/info") as info:
        assert (200, 200) == (health.status, info.status)


async def test_generate_gives_text_and_on_request_details(http: aiohttp.ClientSession) -> None:
    body: dict[str, Any] = {"inputs": "Once upon", "parameters": {"max_new_tokens": 3, "seed": 4, "do_sample": True}}
    async with http.post("/generate", json=body) as response:
        assert ["generated_text"] == list(await response.json())
    body["parameters"] |= {"details": True, "top_n_tokens": 2, "return_full_text": True}
    async with http.post("/generate", json=body) as response:
        answer = await response.json()
    assert answer["generated_text"].startswith("Once upon")
    details = answer["details"]
    assert ("length", 3, 4, 3) == (
        details["finish_reason"],
        details["generated_tokens"],
        details["seed"],
        len(details["top_tokens"]),
    )


@pytest.mark.parametrize(
    "parameters",
    [
        {"best_of": 3, "do_sample": True},
        {"best_of": 2, "do_sample": True, "seed": 1},
        {"best_of": 2},
        {"temperature": 0},
    ],
)
async def test_generate_refuses_best_of_over_2_or_with_a_seed_and_temperature_0(
    http: aiohttp.ClientSession, parameters: dict[str, Any]
) -> None:
    async with http.post("/generate", json={"inputs": "a", "parameters": parameters}) as response:
        assert (422, "validation") == (response.status, (await response.json())["error_type"])


@pytest.mark.parametrize("body", [{}, {"inputs": 3}, {"inputs": "a", "parameters": 3}])
async def test_generate_refuses_a_body_of_the_wrong_type(http: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    async with http.post("/generate", json=body) as response:
        assert (422, "text/plain") == (response.status, response.content_type)


async def test_generate_stream_ends_with_the_whole_text_and_without_done(http: aiohttp.ClientSession) -> None:
    body = {"inputs": "Once upon", "parameters": {"max_new_tokens": 3, "details": True, "top_n_tokens": 1}}
    async with http.post("/generate_stream", json=body) as response:
        text = await response.text()
    assert (3, False) == (text.count("data: "), "[DONE]" in text)
    assert (2, 1) == (text.count('"generated_text":null'), text.count('"finish_reason":"length"'))


async def test_generate_stream_reports_errors_in_its_own_frame(http: aiohttp.ClientSession) -> None:
    body = {"inputs": "a", "parameters": {"top_p": 1.0}}
    async with http.post("/generate_stream", json=body) as response:
        assert 200 == response.status
        assert '"error_type":"validation"' in await response.text()


async def test_permits_are_taken_at_once_or_the_call_is_a_429_without_retry_after() -> None:
    knobs = Knobs(max_concurrent_requests=2, latency_ms=60_000)
    async with TgiStub(knobs) as stub, aiohttp.ClientSession(stub.url) as http:

        async def post() -> None:
            await http.post("/v1/chat/completions", json={"messages": QUESTION})

        running = [asyncio.create_task(post()) for _ in range(2)]
        await stub.state.until(lambda state: state.generating == 2)
        async with http.post("/v1/chat/completions", json={"messages": QUESTION, "top_p": 1.0}) as response:
            assert 429 == response.status, "overload is told before a bad value is"
            assert "Retry-After" not in response.headers
            assert {"error": "Model is overloaded", "error_type": "overloaded"} == await response.json()
        async with http.post("/v1/chat/completions", json={"messages": QUESTION, "stream": True}) as response:
            assert 200 == response.status
            frame = 'data: {"error":{"message":"Model is overloaded","http_status_code":422}}'
            assert [frame, "data: [DONE]"] == (await response.text()).split("\n\n")[:2]
        running[0].cancel()
        await stub.state.until(lambda state: state.generating == 1 and state.cancelled == 1)
        assert (2, 2) == (stub.state.overloaded, stub.state.peak_generating)
        running[1].cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_dropped_connection_stops_generation_and_frees_its_permit() -> None:
    async with TgiStub(Knobs(tokens_per_s=20, answer_tokens_min=90)) as stub, aiohttp.ClientSession(stub.url) as http:
        for stream in (False, True):
            call = asyncio.create_task(http.post("/v1/chat/completions", json={"messages": QUESTION, "stream": stream}))
            await stub.state.until(lambda state: state.generating == 1)
            if stream:
                (await call).close()
            else:
                call.cancel()
            await stub.state.until(lambda state: state.generating == 0)
        assert (2, 0) == (stub.state.cancelled, stub.state.finished)
        assert stub.state.tokens_generated < 90
