"""A prompt that is too long is refused before a race draws: the server counts it once, if it may be too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.backend.pool import BackendPool
from gateway.backend.prompt_length import may_exceed
from gateway.errors import ContextLengthExceeded
from gateway.types import Prompt
from tests.gateway.backend.conftest import PoolOf, prompt
from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub
from tests.stubs.vllm import VllmKnobs, VllmStub

LIMIT = 100
Stub = TgiStub | VllmStub
CHAT = "/v1/chat/completions"
COUNTS = {"tgi": "/chat_tokenize", "vllm": "/tokenize"}


@pytest.fixture(params=["tgi", "vllm"])
async def limited(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Stub]]:
    """A kind, and a server of that kind that takes ``LIMIT`` tokens of prompt, four of them for its template."""
    tgi, vllm = TgiStub(Knobs(max_input_tokens=LIMIT)), VllmStub(VllmKnobs(max_model_len=LIMIT))
    stub: Stub = tgi if request.param == "tgi" else vllm
    stub.knobs.update({"record_requests": 1000})
    async with stub:
        yield request.param, stub


def asked(stub: Stub, path: str) -> int:
    return sum(request.path == path for request in stub.state.requests)


async def race(pool: BackendPool, wanted: Prompt, n: int = 4) -> list[Any]:
    route = pool.choose_replica()
    draws = (pool.complete(wanted, seed=seed, replica=route) for seed in range(n))
    return await asyncio.gather(*draws, return_exceptions=True)


@pytest.mark.parametrize(("words", "refused"), [(LIMIT - 5, False), (LIMIT - 4, False), (LIMIT - 3, True)])
async def test_the_servers_count_decides_once_for_a_race(
    limited: tuple[str, Stub], pool_of: PoolOf, words: int, refused: bool
) -> None:
    kind, stub = limited
    pool = pool_of(stub.url, kind=kind)
    await pool.readiness()
    answers = await race(pool, prompt(" ".join(["words"] * words), max_tokens=4))
    assert (1, 0 if refused else 4) == (asked(stub, COUNTS[kind]), asked(stub, CHAT))
    assert ({ContextLengthExceeded} if refused else set()) == {
        type(answer) for answer in answers if isinstance(answer, BaseException)
    }
    if refused:
        assert ("messages", True, True) == (
            answers[0].param,
            f"is {LIMIT} tokens" in answers[0].message,
            f"have {LIMIT + 1} tokens" in answers[0].message,
        )


async def test_a_stream_is_refused_in_the_same_way(limited: tuple[str, Stub], pool_of: PoolOf) -> None:
    kind, stub = limited
    pool = pool_of(stub.url, kind=kind)
    await pool.readiness()
    with pytest.raises(ContextLengthExceeded):
        await anext(pool.stream(prompt("words " * LIMIT), seed=1, replica=0))
    assert 0 == asked(stub, CHAT)


async def test_an_ordinary_prompt_is_not_counted(limited: tuple[str, Stub], pool_of: PoolOf) -> None:
    kind, stub = limited
    pool = pool_of(stub.url, kind=kind)
    await pool.readiness()
    await race(pool, prompt("a few words", max_tokens=4))
    assert (0, 4) == (asked(stub, COUNTS[kind]), asked(stub, CHAT))


async def test_an_unknown_limit_is_asked_for_if_a_prompt_is_long(limited: tuple[str, Stub], pool_of: PoolOf) -> None:
    kind, stub = limited
    pool = pool_of(stub.url, kind="auto" if kind == "tgi" else kind)
    assert {ContextLengthExceeded} == {type(answer) for answer in await race(pool, prompt("words " * 2000))}
    assert 0 == asked(stub, CHAT)


@pytest.mark.parametrize(
    ("text", "exceeds"),
    [
        ("a" * 145, False),  # sent in a frame of 20 other bytes and 15 letters
        ("a" * 146, True),
        ("7" * 72, False),
        ("7" * 73, True),
        ("é" * 36, False),
        ("é" * 37, True),
        ("魚" * 24, False),
        ("魚" * 25, True),
        ("\ud800" * 1000, False),
    ],
)
def test_two_letters_count_as_a_token_and_so_does_each_other_byte(text: str, exceeds: bool) -> None:
    assert exceeds == may_exceed(prompt(text), LIMIT)


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def llama(stack: AsyncExitStack, count: Answer) -> tuple[str, list[str]]:
    """Serve llama.cpp's routes, one of which counts as given; return the URL and the paths that were called."""
    paths: list[str] = []

    async def answer(http: web.Request) -> web.StreamResponse:
        paths.append(http.path)
        body = await http.json() if http.can_read_body else {}
        match http.path:
            case "/props":
                return web.json_response({"default_generation_settings": {"n_ctx": LIMIT}, "total_slots": 4})
            case "/lora-adapters":
                return web.json_response([])
            case "/apply-template":
                return web.json_response({"prompt": f"<s>{body['messages'][0]['content']}</s>"})
            case "/tokenize":
                return await count(http)
            case "/v1/chat/completions":
                choice = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
                usage = {"prompt_tokens": 1, "completion_tokens": 1}
                return web.json_response({"choices": [choice], "usage": usage})
        return web.json_response({}, status=200 if http.path == "/health" else 404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    server = await stack.enter_async_context(TestServer(app))
    return str(server.make_url("")).rstrip("/"), paths


async def words(http: web.Request) -> web.StreamResponse:
    return web.json_response({"tokens": (await http.json())["content"].split()})


async def no_list(http: web.Request) -> web.StreamResponse:
    return web.json_response({"tokens": "many"})


async def failing(http: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


async def breaking(http: web.Request) -> web.StreamResponse:
    assert http.transport is not None
    http.transport.abort()
    return web.Response()


async def test_llamacpp_counts_the_rendered_template(pool_of: PoolOf) -> None:
    async with AsyncExitStack() as stack:
        url, paths = await llama(stack, words)
        pool = pool_of(url, kind="llamacpp")
        await pool.readiness()
        assert {ContextLengthExceeded} == {type(answer) for answer in await race(pool, prompt("words " * LIMIT))}
    assert (1, 1, 0) == (paths.count("/apply-template"), paths.count("/tokenize"), paths.count(CHAT))


@pytest.mark.parametrize("count", [no_list, failing, breaking])
async def test_if_the_count_fails_the_draws_are_made(pool_of: PoolOf, count: Answer) -> None:
    async with AsyncExitStack() as stack:
        url, paths = await llama(stack, count)
        pool = pool_of(url, kind="llamacpp")
        await pool.readiness()
        answers = await race(pool, prompt("words " * LIMIT))
    assert not [answer for answer in answers if isinstance(answer, BaseException)]
    assert 4 == paths.count(CHAT)
