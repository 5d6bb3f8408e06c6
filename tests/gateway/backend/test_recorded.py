"""The gateway reads what real servers answered when their answers were recorded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from gateway.backend.pool import BackendPool
from gateway.errors import (
    BackendError,
    BackendFailed,
    BackendKeyRefused,
    BackendMisconfigured,
    BackendOverloaded,
    BackendRejected,
    BackendUnreachable,
    ContextLengthExceeded,
)
from gateway.types import Message, Prompt, Sampling
from tests.gateway.backend.conftest import PoolOf
from tests.stubs import replay

CHAT = "/v1/chat/completions"
KINDS = ("tgi", "vllm", "llamacpp")
Row = dict[str, Any]

# Rows whose error differs from the one that their status stands for.
TOLD: dict[str, type[BackendError]] = {
    "prompt too long": ContextLengthExceeded,
    "prompt too long, no max_tokens": ContextLengthExceeded,
    "prompt and max_tokens too long": ContextLengthExceeded,
    "prompt too long stream": ContextLengthExceeded,
    "aborted": BackendUnreachable,
    "aborted stream": BackendUnreachable,
    "engine error stream": BackendFailed,
    "fails in generation stream": BackendFailed,
    "overloaded stream": BackendOverloaded,
    "tools without a parser": BackendMisconfigured,
    "tool_choice required without a parser": BackendMisconfigured,
    "tools empty list": BackendFailed,
}
# TGI refuses a tool call that max_tokens cut; the gateway makes an answer of the text in its error.
CUT_CALL = "tools cut"
BY_STATUS: dict[int, type[BackendError]] = {
    -1: BackendUnreachable,
    400: BackendRejected,
    401: BackendKeyRefused,
    404: BackendFailed,
    413: BackendRejected,
    415: BackendRejected,
    422: BackendRejected,
    424: BackendFailed,
    429: BackendOverloaded,
    500: BackendFailed,
}


def rows(*, stream: bool, answered: bool) -> list[Any]:
    """Return the recorded chat calls, plain or streamed, that were answered or failed."""
    found = []
    for kind in KINDS:
        for row in replay.rows(kind):
            request = row["request"]
            body = request.get("body")
            if kind == "llamacpp" and isinstance(body, dict) and body.get("tool_choice") is not None:
                continue  # the gateway asks llama.cpp for a forced call by a schema, which was not recorded
            if request["path"] != CHAT or request["method"] != "POST" or not isinstance(body, dict):
                continue
            if row["name"] == CUT_CALL:
                continue
            fails = row["name"] in TOLD or row["status"] != 200
            if bool(body.get("stream")) == stream and fails != answered:
                found.append(pytest.param(kind, row, id=f"{kind}: {row['name']}"))
    return found


@asynccontextmanager
async def answering(kind: str, row: Row, pool_of: PoolOf) -> AsyncIterator[BackendPool]:
    """Serve one recorded answer to every draw; the lists of models are those of a server without adapters."""

    async def chat(request: web.Request) -> web.StreamResponse:
        if row["status"] == -1:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if "events" in row:
            lines = [event if event == "[DONE]" else orjson.dumps(event).decode() for event in row["events"]]
            text = "".join(f"data: {line}\n\n" for line in lines)
            return web.Response(text=text, content_type="text/event-stream")
        if "body" in row:
            return web.json_response(row["body"], status=row["status"])
        return web.Response(text=row.get("text", ""), status=row["status"])

    app = web.Application(client_max_size=2**26)
    app.router.add_post(CHAT, chat)
    app.router.add_get("/health", fixed({}))
    app.router.add_get("/v1/models", fixed({"data": [{"id": "model", "parent": None}]}))
    app.router.add_get("/lora-adapters", fixed([]))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield pool_of(f"http://127.0.0.1:{runner.addresses[0][1]}", kind=kind)
    finally:
        await runner.cleanup()


def fixed(value: Any) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return a handler that always answers with this JSON."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(value)

    return answer


def asked(row: Row) -> Prompt:
    """Return the prompt that a caller's like request becomes, as far as answers depend on it."""
    body = row["request"]["body"]
    stop = body.get("stop") or ()
    messages: list[Message] = [{"role": "user", "content": "What floats on the harbour?"}]
    sampling = Sampling(
        max_tokens=body.get("max_tokens"),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logprobs=bool(body.get("logprobs")),
        top_logprobs=body.get("top_logprobs"),
        tools=tuple(body.get("tools") or ()),
        tool_choice=body.get("tool_choice"),
    )
    return Prompt(messages, sampling)


def choices_of(row: Row) -> list[Any]:
    bodies = row["events"] if "events" in row else [row["body"]]
    return [choice for body in bodies if body != "[DONE]" for choice in body["choices"]]


@pytest.mark.parametrize(("kind", "row"), rows(stream=False, answered=True))
async def test_a_whole_answer_is_read_as_it_was_given(kind: str, row: Row, pool_of: PoolOf) -> None:
    async with answering(kind, row, pool_of) as pool:
        answer = await pool.complete(asked(row), seed=1, replica=0)
    choice = row["body"]["choices"][0]
    text = choice["message"].get("content")
    for stop in asked(row).sampling.stop if kind == "tgi" else ():
        text = text.removesuffix(stop)
    assert (text or "").strip() == (answer.text or "").strip()
    calls = [call["function"]["name"] for call in choice["message"].get("tool_calls") or []]
    assert calls == [call["function"]["name"] for call in answer.tool_calls]
    assert row["body"]["usage"]["prompt_tokens"] <= answer.prompt_tokens
    assert answer.finish_reason in {"stop", "length", "tool_calls"}
    assert bool(calls) == (answer.finish_reason == "tool_calls")


@pytest.mark.parametrize(("kind", "row"), rows(stream=True, answered=True))
async def test_a_stream_gives_the_pieces_that_the_server_sent(kind: str, row: Row, pool_of: PoolOf) -> None:
    async with answering(kind, row, pool_of) as pool:
        deltas = [delta async for delta in pool.stream(asked(row), seed=1, replica=0)]
    pieces = [choice["delta"].get("content") or "" for choice in choices_of(row)]
    text = "".join(pieces)
    for stop in asked(row).sampling.stop if kind == "tgi" else ():
        text = text.removesuffix(stop)
    assert text.strip() == "".join(delta.text for delta in deltas).strip()
    assert deltas[-1].finish_reason in {"stop", "length", "tool_calls"}


async def draw(pool: BackendPool, row: Row) -> None:
    """Draw once, as the row's caller asked: whole or streamed."""
    if row["request"]["body"].get("stream"):
        [_ async for _ in pool.stream(asked(row), seed=1, replica=0)]
    else:
        await pool.complete(asked(row), seed=1, replica=0)


@pytest.mark.parametrize(("kind", "row"), [*rows(stream=False, answered=False), *rows(stream=True, answered=False)])
async def test_a_recorded_failure_is_the_right_error(kind: str, row: Row, pool_of: PoolOf) -> None:
    wanted = TOLD.get(row["name"], BY_STATUS[row["status"]] if row["status"] != 200 else BackendError)
    async with answering(kind, row, pool_of) as pool:
        with pytest.raises(wanted):
            await draw(pool, row)


async def test_a_tool_call_that_tgi_cut_is_an_answer_cut_short(pool_of: PoolOf) -> None:
    row = next(row for row in replay.rows("tgi") if row["name"] == CUT_CALL)
    async with answering("tgi", row, pool_of) as pool:
        answer = await pool.complete(asked(row), seed=1, replica=0)
    assert "length" == answer.finish_reason
