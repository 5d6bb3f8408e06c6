"""Callers who hang up in mid-stream: each leaves a record, and each pays."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import orjson
from redis.asyncio import Redis

from gateway.journal.stream import stream_key
from loadtests.hostile.case import ANSWER, Case, Target, chat, post, words
from loadtests.hostile.impostor import Script

_CALLERS = 50
_TRIES = 8  # each costs 80 tokens or more, of the 100 that the key has in a minute
_LOOKS = 200
_STREAM = stream_key("ratchet")


def _piece(text: str) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}]}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
_HANGS = Script((_HEAD + _piece(ANSWER) * 80,), when=b"POST /v1/chat", then="hang")


async def _hang_up(target: Target, caller: str) -> int:
    """Request a stream, read its first piece, and close the connection; return the answer's status."""
    reader, writer = await asyncio.open_connection(*target.address)
    try:
        writer.write(post(orjson.dumps(chat(stream=True, max_tokens=200)), caller=caller))
        head = await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError):
            if b" 200 " in head:
                await reader.readuntil(ANSWER.encode())
        return int(head.split()[1])
    finally:
        writer.transport.abort()


async def _last_entry(redis: Redis) -> str:
    entries: Any = await redis.xrevrange(_STREAM, count=1)
    return entries[0][0].decode() if entries else "0-0"


async def _records_cut(redis: Redis, after: str) -> int:
    entries: Any = await redis.xrange(_STREAM, min=f"({after}")
    return sum(b'"ending":"cut"' in fields[b"data"] for _, fields in entries)


async def _are_recorded(target: Target) -> str:
    """Let fifty callers hang up after the first piece; each must have a record with that ending."""
    async with Redis.from_url(target.redis_url, protocol=2) as redis:
        last = await _last_entry(redis)
        statuses = await asyncio.gather(*(_hang_up(target, "chat") for _ in range(_CALLERS)))
        begun, found = statuses.count(200), 0
        for _ in range(_LOOKS):
            found = await _records_cut(redis, last)
            if found >= begun:
                break
            await asyncio.sleep(0.1)
    return "200" if begun and found == begun else f"{found} of {begun} recorded"


async def _pay(target: Target) -> str:
    """Hang up again and again before the last chunk; the caller must reach the key's limit all the same."""
    for _ in range(_TRIES):
        if await _hang_up(target, "poor") == 429:
            return "200"
        await asyncio.sleep(0.2)
    return f"{_TRIES} streams for nothing"


CASES = (
    Case("stream-hang-up-recorded", "Fifty callers hang up after the first piece.", words("200"),
         backend=_HANGS, act=_are_recorded),
    Case("stream-hang-up-paid", "A caller hangs up before the last chunk, again and again.", words("200"),
         backend=_HANGS, act=_pay),
)  # fmt: skip
