"""Callers who name things they may not reach, and callers with wrong keys."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import orjson

from loadtests.hostile.case import (
    CHAT,
    CLOSE,
    HOST,
    JSON,
    KEY,
    PROMPT,
    Case,
    Target,
    ask,
    bearer,
    chat,
    get,
    post,
    words,
)

BODY = orjson.dumps(chat())
_SAME_WITHIN = 0.3
_PAIRS = 200


def _names(canary_port: int) -> dict[str, str]:
    """Return names that lead to a file, host or shell if anyone follows them."""
    return {
        "path": "../../../../etc/passwd",
        "absolute": "/etc/passwd",
        "file": "file:///etc/passwd",
        "http": f"http://127.0.0.1:{canary_port}/canary",
        "metadata": "http://169.254.169.254/latest/meta-data/",
        "redis": f"gopher://127.0.0.1:{canary_port}/_FLUSHALL",
        "hub": "hub-user/model",
        "nul": "ratchet\0.safetensors",
        "crlf": "ratchet\r\nx-injected: 1",
        "unicode": "r\u0430tchet",
        "jndi": f"${{jndi:ldap://127.0.0.1:{canary_port}/a}}",
        "shell": "`touch canary`$(touch canary)",
        "long": "a" * 257,
    }


def _places(name: str) -> dict[str, tuple[bytes, str]]:
    """Return a request for each place in which a name can stand, and its acceptable outcomes."""
    image = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": name}}]
    function = {"name": "f", "parameters": {"$ref": name, "$schema": name, "properties": {"a": {"$ref": name}}}}
    schema = {"name": "s", "schema": {"$ref": name, "$id": name}}
    return {
        "model": (ask(model=name), "404,400"),
        "image": (ask(messages=[{"role": "user", "content": image}]), "400"),
        "tool": (ask(tools=[{"type": "function", "function": function}]), "200 single,400"),
        "schema": (ask(response_format={"type": "json_schema", "json_schema": schema}), "200 single,400"),
        "rest": (ask(user=name, metadata={"url": name, "path": name}, prompt_cache_key=name, safety_identifier=name),
                 "200 single"),
        "unserved": (ask(audio={"voice": name}, functions=[{"name": name}], prediction={"url": name}), "400"),
    }  # fmt: skip


def names(canary_port: int) -> tuple[Case, ...]:
    """Return a case for each name at each place."""
    return tuple(
        Case(f"name-{what}-{place}", f"A name that leads somewhere ({what}) as {place}.", words(allowed), (request,))
        for what, name in _names(canary_port).items()
        for place, (request, allowed) in _places(name).items()
    )


def _sent(header: bytes, *more: bytes, body: bytes = BODY) -> bytes:
    length = b"content-length: %d\r\n" % len(body)
    return b"".join((f"POST {CHAT} HTTP/1.1\r\n".encode(), HOST, JSON, CLOSE, length, header, *more, b"\r\n", body))


def _header(name: str, tried: str, header: bytes, allowed: str) -> Case:
    return Case(f"header-{name}", tried, words(allowed), (_sent(bearer(), header),))


HEADERS = (
    _header("id-crlf", "A request id that begins a header of its own.", b"x-request-id: a\r\n\tx-injected: 1\r\n", "400,200 single"),
    _header("id-encoded", "A request id with an encoded line end.", b"x-request-id: a%0d%0ax-injected:%201\r\n", "200 single"),
    _header("id-long", "A request id of 20,000 letters.", b"x-request-id: " + b"a" * 20_000 + b"\r\n", "200 single"),
    _header("id-html", "A request id that is a script.", b"x-request-id: <script>alert(1)</script>\r\n", "200 single"),
    _header("id-json", "A request id that ends a log line's JSON.", b'x-request-id: "}\\n{"level":"error\r\n', "200 single"),
    _header("id-bytes", "A request id of bytes above 127.", b"x-request-id: \xff\xfe\r\n", "200 single"),
    _header("id-mark", "A request id that is a prompt's word.", b"x-request-id: " + PROMPT.encode() + b"!\r\n", "200 single"),
    _header("best-of-minus", "A best of minus one.", b"x-best-of: -1\r\n", "400"),
    _header("best-of-huge", "A best of a million.", b"x-best-of: 1000000\r\n", "400"),
    _header("best-of-digits", "A best of 20,000 digits.", b"x-best-of: " + b"9" * 20_000 + b"\r\n", "400"),
    _header("best-of-superscript", "A best of superscript digits.", b"x-best-of: \xb2\r\n", "400"),
    _header("best-of-arabic", "A best of digits in another script.", "x-best-of: ٣\r\n".encode(), "400"),
    _header("best-of-twice", "Two best-ofs.", b"x-best-of: 1\r\nx-best-of: 16\r\n", "200 single,400"),
    _header("best-of-empty", "An empty best-of.", b"x-best-of: \r\n", "400"),
    _header("forwarded", "A client that says where it comes from.", b"x-forwarded-for: 127.0.0.1\r\nforwarded: for=[::1]\r\n",
            "200 single"),
    _header("original-url", "A header that names another route.", b"x-original-url: /metrics\r\nx-rewrite-url: /metrics\r\n",
            "200 single"),
    _header("shellshock", "A header that is a shell's function.", b"user-agent: () { :;}; /bin/false\r\n", "200 single"),
)  # fmt: skip


async def _timing(target: Target) -> str:
    """Check that the time of a refusal does not tell how near a key came: the fastest tenth of interleaved attempts."""
    near, far = f"rk-{KEY}-chaX", "x" * len(f"rk-{KEY}-chat")
    seconds: dict[str, list[float]] = {near: [], far: []}
    for _ in range(_PAIRS):
        for key, taken in seconds.items():
            started = time.perf_counter()
            await target.say(_sent(f"authorization: Bearer {key}\r\n".encode()))
            taken.append(time.perf_counter() - started)
    one, other = (statistics.quantiles(taken, n=10)[0] for taken in seconds.values())
    return "200" if abs(one - other) < _SAME_WITHIN * max(one, other) else "500"


async def _at_once(target: Target) -> str:
    """Send two hundred chats at the same moment: each is answered or refused with 429."""
    answers = await asyncio.gather(*(target.say(ask(best_of=2)) for _ in range(200)))
    outcomes = {answer.outcome for answer in answers}
    return "200" if outcomes <= {"200 scored", "200 single", "429"} else "+".join(sorted(outcomes))


async def _gone_at_once(target: Target) -> str:
    """Let two hundred callers hang up as soon as they have sent their request."""

    async def one() -> None:
        _, writer = await asyncio.open_connection(*target.address)
        writer.write(ask(best_of=2))
        await writer.drain()
        writer.transport.abort()

    await asyncio.gather(*(one() for _ in range(200)))
    return "200"


async def _idle(target: Target) -> str:
    """Open five hundred silent connections, and send a good request beside them."""
    held = await asyncio.gather(*(asyncio.open_connection(*target.address) for _ in range(500)))
    try:
        return (await target.say(ask())).outcome.partition(" ")[0]
    finally:
        for _, writer in held:
            writer.transport.abort()


def _auth(name: str, tried: str, header: bytes, allowed: str = "401") -> Case:
    return Case(f"key-{name}", tried, words(allowed), (_sent(header),))


_WRONG = f"rk-{KEY}-wrong".encode()
KEYS = (
    _auth("none", "No key.", b""),
    _auth("wrong", "A wrong key.", b"authorization: Bearer " + _WRONG + b"\r\n"),
    _auth("empty", "An empty key.", b"authorization: Bearer \r\n"),
    _auth("no-scheme", "A key without its scheme.", b"authorization: rk-" + KEY.encode() + b"-chat\r\n"),
    _auth("basic", "A key by another scheme.", b"authorization: Basic cmstenl6enl2YQ==\r\n"),
    _auth("prefix", "The beginning of a key.", bearer()[:-4] + b"\r\n"),
    _auth("longer", "A key and one letter more.", bearer()[:-2] + b"x\r\n"),
    _auth("case", "A key in capitals.", bearer().replace(KEY.encode(), KEY.upper().encode())),
    _auth("huge", "A key of 30,000 letters.", b"authorization: Bearer " + _WRONG * 1_800 + b"\r\n", "401,431"),
    _auth("bytes", "A key of bytes above 127.", b"authorization: Bearer \xff\xfe\x80\r\n"),
    _auth("nul", "A key with a NUL.", b"authorization: Bearer a\x00b\r\n", "400"),
    _auth("hash", "The hash that the key file holds, for a key.", b"authorization: Bearer sha256:" + b"0" * 64 + b"\r\n"),
    _auth("query", "A key as a parameter of the URL.", b""),
    _auth("cookie", "A key as a cookie.", b"cookie: authorization=Bearer " + _WRONG + b"\r\n"),
    _auth("two", "A wrong key and then a good one.", b"authorization: Bearer " + _WRONG + b"\r\n" + bearer()),
    _auth("list", "Two keys in one header.", bearer()[:-2] + b", Bearer " + _WRONG + b"\r\n"),
    _auth("sql", "A key that is a database's command.", b"authorization: Bearer ' OR '1'='1\r\n"),
    Case("key-feedback-chats", "A key for feedback chats.", words("403"), (post(BODY, caller="feedback"),)),
    Case("key-admin-chats", "A key for operators chats.", words("403"), (post(BODY, caller="admin"),)),
    Case("key-chat-metrics", "A key for chats reads metrics.", words("403"), (get("/metrics", bearer()),)),
    Case("key-none-metrics", "Nobody reads metrics.", words("401"), (get("/metrics"),)),
    Case("key-chat-openapi", "A key for chats reads the API's document.", words("403"), (get("/openapi.json", bearer()),)),
    Case("key-none-docs", "Nobody reads the pages for people.", words("404"), (get("/docs"),)),
    Case("key-none-models", "Nobody reads the models.", words("401"), (get("/v1/models"),)),
    Case("key-none-huge-body", "Nobody sends 10 MB.", words("401,cut"), (_sent(b"", body=b"a" * 10_000_000),)),
    Case("key-limit", "A key with one request a minute asks twice.", words("200+429 single,429×2"),
         (post(BODY, caller="single", close=b"") + post(BODY, caller="single"),)),
    Case("key-timing", "The time of a refusal tells how near a key came.", words("200"), act=_timing),
    Case("load-at-once", "Two hundred chats at the same moment.", words("200"), act=_at_once),
    Case("load-gone", "Two hundred callers who hang up at once.", words("200"), act=_gone_at_once),
    Case("load-idle", "Five hundred connections that say nothing.", words("200"), act=_idle),
)  # fmt: skip

_ID = "chatcmpl-" + "0" * 32


def _feedback(name: str, tried: str, body: Any, allowed: str = "400", caller: str = "feedback") -> Case:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return Case(f"feedback-{name}", tried, words(allowed), (post(raw, path="/v1/feedback", caller=caller),))


FEEDBACK = (
    _feedback("unknown-id", "A rating of an answer that never was.", {"id": _ID, "rating": 1, "comment": PROMPT}, "200"),
    _feedback("id-path", "An id that is a path.", {"id": "../../" + _ID, "rating": 1}),
    _feedback("id-long", "An id of 100,000 letters.", {"id": _ID * 2500, "rating": 1}),
    _feedback("id-newline", "An id with a line end behind it.", {"id": _ID + "\n", "rating": 1}),
    _feedback("id-redis", "An id that is Redis's protocol.", {"id": "\r\n*1\r\n$8\r\nFLUSHALL\r\n", "rating": 1}),
    _feedback("id-list", "An id that is a list.", {"id": [_ID], "rating": 1}),
    _feedback("rating-nan", "A rating of NaN.", f'{{"id":"{_ID}","rating":NaN}}'.encode()),
    _feedback("rating-2", "A rating of two.", {"id": _ID, "rating": 2}),
    _feedback("rating-1e999", "A rating beyond any float.", f'{{"id":"{_ID}","rating":1e999}}'.encode()),
    _feedback("rating-text", "A rating in words.", {"id": _ID, "rating": PROMPT}),
    _feedback("rating-true", "A rating of true.", {"id": _ID, "rating": True}),
    _feedback("comment-10001", "A comment that is too long.", {"id": _ID, "rating": 1, "comment": "a" * 10_001}),
    _feedback("comment-html", "A comment that is a script.", {"id": _ID, "rating": 1, "comment": "<script>alert(1)</script>"}, "200"),
    _feedback("comment-formula", "A comment that is a spreadsheet's formula.", {"id": _ID, "rating": 1, "comment": "=cmd|' /C calc'!A0"},
              "200"),
    _feedback("comment-surrogate", "A comment with a lone surrogate.",
              f'{{"id":"{_ID}","rating":1,"comment":"\\ud800"}}'.encode()),
    _feedback("unknown-field", "A field that nobody knows.", {"id": _ID, "rating": 1, "key_id": "x"}),
    _feedback("two-megabytes", "Two megabytes.", {"id": _ID, "rating": 1, "comment": "a" * 2_000_000}, "413,cut"),
    _feedback("wrong-scope", "An operator's key rates.", {"id": _ID, "rating": 1}, "403", caller="admin"),
    Case("feedback-get", "A rating by GET.", words("405"), (get("/v1/feedback", bearer("feedback")),)),
)  # fmt: skip


def cases(canary_port: int) -> tuple[Case, ...]:
    """Return all cases; some names lead to the canary."""
    return (*names(canary_port), *HEADERS, *KEYS, *FEEDBACK)
