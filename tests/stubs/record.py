"""Record a real server's answers: ``python -m tests.stubs.record vllm`` (or ``llamacpp``) writes recorded/NAME.jsonl.

``vllm`` needs `make vllm-front`; ``llamacpp`` runs the wheel's server on SmolLM2's real weights. A recording changes
only when somebody runs this on purpose: tests replay the file.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from gateway.embedded.llama import LlamaServer
from tests.stubs import replay
from tests.vllm_front.front import Front, script

CHAT = "/v1/chat/completions"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "w", "parameters": CITY}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bergen"}}\n</tool_call>'
LONG_CHARACTERS = 15_000

Row = tuple[str, str, dict[str, Any]]
"""The server (see ``_record_vllm``), the row's name, and the request."""


def main(kind: str) -> None:
    """Record one kind of server."""
    recorded = asyncio.run({"vllm": _record_vllm, "llamacpp": _record_llamacpp}[kind]())
    path = replay.FOLDER / f"{kind}.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in recorded))
    sys.stdout.write(f"{len(recorded)} rows in {path}\n")


def _chat(name: str, say: str = "ok", *, server: str = "plain", **fields: Any) -> Row:
    """Return a chat request whose only message makes the scripted engine say ``say``."""
    messages = fields.pop("messages", [{"role": "user", "content": script(say, **fields.pop("script", {}))}])
    body = {"model": "model", "max_tokens": 24, "messages": messages, **fields}
    return server, name, _post(CHAT, {field: value for field, value in body.items() if value != "leave out"})


def _post(path: str, body: Any) -> dict[str, Any]:
    return {"method": "POST", "path": path, "body": body}


def _get(path: str) -> dict[str, Any]:
    return {"method": "GET", "path": path}


def _common_rows() -> Iterator[Row]:
    """Yield what both kinds are asked."""
    yield _chat("plain", "Hello naïve 🙂")
    yield _chat("no model", model="leave out")
    yield _chat("unknown model", model="somebody-else")
    yield _chat("stream", "Hello there", stream=True)
    yield _chat("stream usage", "Hi", stream=True, stream_options={"include_usage": True})
    yield _chat("logprobs", "Hi", logprobs=True, top_logprobs=2)
    yield _chat("logprobs stream", "Hi", logprobs=True, top_logprobs=1, stream=True)
    yield _chat("top_logprobs 0", "Hi", logprobs=True, top_logprobs=0)
    yield _chat("length", "one two three four", max_tokens=2)
    yield _chat("length stream", "one two three four", max_tokens=2, stream=True)
    yield _chat("stop", "one two STOP three", stop=["STOP"])
    yield _chat("stop as text", "one two STOP three", stop="STOP")
    yield _chat("n 3", n=3)
    yield _chat("temperature 0", temperature=0)
    yield _chat("temperature -1", temperature=-1)
    yield _chat("temperature 3", temperature=3)
    yield _chat("top_p 0", top_p=0)
    yield _chat("top_p 1", top_p=1)
    yield _chat("seed -1", seed=-1)
    yield _chat("seed big", seed=2**63 - 1)
    yield _chat("seed as text", seed="x")
    yield _chat("logit_bias map", logit_bias={"5": 1})
    yield _chat("logit_bias outside", logit_bias={"49999999": 1})
    yield _chat("nulls", stop=None, seed=None, temperature=None, tools=None, tool_choice=None, response_format=None)
    yield _chat("unknown fields", user="u", metadata={"a": "b"}, store=False, verbosity="low")
    yield _chat("max_tokens 0", max_tokens=0)
    yield _chat("max_tokens too many", max_tokens=5_000)
    long = [{"role": "user", "content": f"word word… ({LONG_CHARACTERS} characters: «word » repeated)"}]
    yield _chat("prompt too long", messages=long)
    yield _chat("prompt too long stream", messages=long, stream=True)
    yield _chat("json_object", '{"a": 1}', response_format={"type": "json_object"})
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    yield _chat("json_schema", '{"a": 1}', response_format=named)
    away = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}
    yield _chat("json_schema with a dangling $ref", response_format=away)
    yield _chat("response_format of an unknown type", response_format={"type": "xml"})
    yield _chat("messages empty", messages=[])
    yield _chat("message without a role", messages=[{"content": "x"}])
    yield _chat("content number", messages=[{"role": "user", "content": 5}])
    yield "plain", "no messages", _post(CHAT, {"model": "model"})
    yield "plain", "syntax", {"method": "POST", "path": CHAT, "raw": '{"messages": ['}
    yield "plain", "not an object", {"method": "POST", "path": CHAT, "raw": "[1]"}
    yield "plain", "unknown route", _get("/v1/nothing")
    yield "plain", "get on chat", _get(CHAT)
    yield "plain", "health", _get("/health")


def _tool_rows(server: str) -> Iterator[Row]:
    whole: dict[str, Any] = {"tools": [WEATHER], "max_tokens": 60, "server": server}
    yield _chat("tools call", CALL, **whole)
    yield _chat("tools call stream", CALL, stream=True, **whole)
    yield _chat("tools, no call", "just text", tools=[WEATHER], server=server)
    yield _chat("tools cut stream", CALL, tools=[WEATHER], max_tokens=14, stream=True, server=server)
    yield _chat("tools cut", CALL, tools=[WEATHER], max_tokens=8, server=server)
    yield _chat("tool_choice required", CALL, tool_choice="required", **whole)
    unknown = {"type": "function", "function": {"name": "zzz"}}
    yield _chat("tool_choice of an unknown tool", CALL, tools=[WEATHER], tool_choice=unknown, server=server)


def _vllm_rows() -> Iterator[Row]:
    yield from _common_rows()
    yield from _tool_rows("tools")
    yield _chat("tools without a parser", tools=[WEATHER])
    yield _chat("tool_choice required without a parser", tools=[WEATHER], tool_choice="required")
    yield _chat("aborted", "half an ans", script={"finish": "abort"})
    yield _chat("aborted stream", "half an ans", script={"finish": "abort"}, stream=True)
    yield _chat("engine error", script={"finish": "error"})
    yield _chat("engine error stream", script={"finish": "error"}, stream=True)
    yield _chat("reasoning", "<think>\nhm\n</think>\n\nyes", server="reasoning")
    yield _chat("reasoning stream", "<think>\nhm\n</think>\n\nyes", stream=True, server="reasoning")
    yield _chat("reasoning cut", "<think>\nhm and so on", max_tokens=4, server="reasoning")
    yield "plain", "models", _get("/v1/models")
    yield "plain", "version", _get("/version")
    yield (
        "plain",
        "load of a folder that is not there",
        _post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/nowhere"}),
    )
    yield "plain", "unload of what is not loaded", _post("/v1/unload_lora_adapter", {"lora_name": "a"})
    yield (
        "keyed",
        "load where adapters are fixed",
        _post("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "/nowhere"}),
    )
    yield _chat("no key", server="keyed")
    yield "keyed", "health without key", _get("/health")
    yield "keyed", "models without key", _get("/v1/models")
    for name, text in (
        ("short", "hi"),
        ("too long", f"word… ({LONG_CHARACTERS} characters: «word » repeated)"),
        ("empty", ""),
    ):
        yield (
            "reward",
            f"classify {name}",
            _post("/classify", {"model": "model", "input": ["hi", text], "use_activation": False}),
        )
    yield "plain", "classify on a chat server", _post("/classify", {"model": "model", "input": ["hi"]})


def _llamacpp_rows() -> Iterator[Row]:
    yield from _common_rows()
    yield from _tool_rows("plain")
    yield "plain", "props", _get("/props")
    yield "plain", "models", _get("/v1/models")
    yield "plain", "adapters", _get("/lora-adapters")
    yield _chat("an adapter that is not loaded", lora=[{"id": 7, "scale": 1.0}])


async def _record_vllm() -> list[dict[str, Any]]:
    """Record five servers: as is, with a tool parser, with a reasoning parser, with a key, and a reward model."""
    name = ("--served-model-name", "model")
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        arguments = {
            "plain": ("--enable-lora",),
            "tools": ("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
            "reasoning": ("--reasoning-parser", "qwen3"),
            "keyed": ("--api-key", "secret"),
        }
        recorded = []
        for server in [*arguments, "reward"]:
            with Front(folder / server, (*name, *arguments.get(server, ())), classifier=server == "reward") as front:
                recorded += await _ask_all(front.url, [row for row in _vllm_rows() if row[0] == server])
        return recorded


async def _record_llamacpp() -> list[dict[str, Any]]:
    with LlamaServer(slots=2, context_tokens=1024) as server:
        return await _ask_all(server.url, list(_llamacpp_rows()))


async def _ask_all(url: str, rows: list[Row]) -> list[dict[str, Any]]:
    recorded = []
    # One connection a request: llama.cpp closes each after a stream.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(120), connector=connector) as http:
        for server, name, request in rows:
            answer = await replay.ask(http, url, request)
            recorded.append({"name": name, "server": server, "request": request, **replay.recorded(answer)})
    return recorded


if __name__ == "__main__":
    main(sys.argv[1])
