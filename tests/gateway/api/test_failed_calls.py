"""The memory of a failed call is freed as soon as it is answered, without the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

from gateway.settings import RedisSettings, Settings
from tests.gateway.api.conftest import chat_body
from tests.gateway.backend.rawserver import listening, ok
from tests.memory import MEGABYTE, growth
from tests.serving import running
from tests.waiting import until

CALLS = 3
BODY_MB = 8
TEXT = "a" * (BODY_MB * MEGABYTE)
SHORT_S, LONG_S = 0.25, 60.0
CHAT, CLASSIFY, MODELS = "/v1/chat/completions", "/classify", "/v1/models"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
USAGE = {"prompt_tokens": 5, "completion_tokens": 7}


def completion(text: str = TEXT, **more: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return ok(orjson.dumps({"choices": [choice], **more}))


def chunk(text: object = TEXT) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"delta": {"content": text}, "finish_reason": None}]}) + b"\n\n"


def rewards(*values: object, **more: Any) -> bytes:
    return ok(orjson.dumps({"data": [{"index": at, "probs": [value]} for at, value in enumerate(values)], **more}))


def cut(answer: bytes) -> bytes:
    """Return the answer without its last byte."""
    return answer[:-1]


@dataclass
class Liar:
    """Backend and reward server in one: answers calls of ``path`` with ``lie``, and all others correctly."""

    path: str
    lie: bytes
    hangs: bool = False
    heard: list[str] = field(default_factory=list)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        path = head.split()[1].decode()
        self.heard.append(path)
        answer, hangs = self.answer(path, body)
        writer.write(answer)
        with contextlib.suppress(OSError):
            await writer.drain()
            if hangs:
                await reader.read()

    def answer(self, path: str, body: bytes) -> tuple[bytes, bool]:
        """Return the answer, and True to hang after it."""
        return (self.lie, self.hangs) if path == self.path else (self._truth(path, body), False)

    def _truth(self, path: str, body: bytes) -> bytes:
        if path == MODELS:
            return ok(orjson.dumps({"data": [{"id": "judge", "owned_by": "ratchet"}]}))
        if path == CLASSIFY:
            return rewards(*[1.0 for _ in orjson.loads(body)["input"]])
        return completion(f"answer {len(self.heard)}", usage=USAGE)


@contextlib.asynccontextmanager
async def gateway(liar: Liar, redis: RedisSettings, folder: Path, **race: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A gateway whose backend and reward server is the liar."""
    async with listening(liar.talk) as url:
        settings = Settings.model_validate(
            {
                "redis": redis.model_dump(),
                "backend": {"urls": (url,)},
                "reward": {"url": url, "timeout_s": SHORT_S if liar.hangs and liar.path == CLASSIFY else LONG_S},
                "journal": {"spool_dir": folder / "spool"},
                "api": {"max_body_bytes": 2 * BODY_MB * MEGABYTE},
                "policy": {"exploration": 0.0},
                "race": {"deadline_s": SHORT_S if liar.hangs and liar.path == CHAT else LONG_S, **race},
            }
        )
        async with (
            running(settings) as base_url,
            httpx2.AsyncClient(base_url=base_url, timeout=LONG_S, trust_env=False) as http,
        ):
            yield http


async def end_of_answer(http: httpx2.AsyncClient, **fields: Any) -> str:
    """Return the end of the answer that a caller gets."""
    return (await http.post(CHAT, json=chat_body(**fields))).text[-1000:]


@pytest.mark.parametrize(
    ("liar", "fields", "code"),
    [
        pytest.param(Liar(CHAT, ok(TEXT.encode())), {"best_of": 1}, "backend_protocol_error", id="no JSON"),
        pytest.param(Liar(CHAT, ok(TEXT.encode())), {"best_of": 2}, "backend_protocol_error", id="no JSON, twice"),
        pytest.param(Liar(CHAT, completion()), {"best_of": 2}, "backend_protocol_error", id="no usage"),
        pytest.param(Liar(CHAT, cut(completion())), {"best_of": 1}, "backend_unreachable", id="cut"),
        pytest.param(Liar(CHAT, cut(completion()), hangs=True), {"best_of": 1}, "deadline_exceeded", id="hangs"),
        pytest.param(
            Liar(CHAT, completion().replace(b"200 OK", b"500 No")), {"best_of": 2}, "backend_failed", id="status 500"
        ),
        pytest.param(
            Liar(CHAT, SSE + chunk("a") + chunk([TEXT])), {"stream": True}, "backend_protocol_error", id="chunk"
        ),
        pytest.param(Liar(CHAT, SSE + chunk()), {"stream": True}, "backend_protocol_error", id="stream cut"),
        pytest.param(
            Liar(CHAT, SSE + chunk("a") + chunk()[:-1], hangs=True),
            {"stream": True},
            "deadline_exceeded",
            id="stream hangs",
        ),
        pytest.param(Liar(CLASSIFY, ok(TEXT.encode())), {"best_of": 2}, "fallback", id="reward no JSON"),
        pytest.param(Liar(CLASSIFY, rewards(None, x=TEXT)), {"best_of": 2}, "fallback", id="reward no number"),
        pytest.param(Liar(CLASSIFY, cut(rewards(1.0, x=TEXT))), {"best_of": 2}, "fallback", id="reward cut"),
        pytest.param(
            Liar(CLASSIFY, cut(rewards(1.0, x=TEXT)), hangs=True), {"best_of": 2}, "fallback", id="reward hangs"
        ),
        # After three failures N is 1, and the report of the next calls says why.
        pytest.param(Liar(MODELS, ok(TEXT.encode())), {"best_of": 2}, '"scoring_error":"Reward', id="models no JSON"),
    ],
)
async def test_no_answer_that_failed_outlives_its_call(
    liar: Liar, fields: dict[str, Any], code: str, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    """Without a collection, calls that fail on answers of megabytes leave less than one answer in memory."""
    async with gateway(liar, redis_settings, tmp_path) as http:
        with growth() as grown_mb:
            for _ in range(CALLS):
                assert code in await end_of_answer(http, **fields)
            await until(lambda: grown_mb() < BODY_MB / 2, timeout_s=5)
        assert liar.heard.count(liar.path) >= (1 if liar.path == MODELS else CALLS)


async def test_no_answer_outlives_a_race_whose_caller_has_gone(redis_settings: RedisSettings, tmp_path: Path) -> None:
    """An answer that had arrived while another was awaited is freed with its race."""
    whole = completion(usage=USAGE)

    class Half(Liar):
        """Answers every other call with megabytes, and the others never."""

        def answer(self, path: str, body: bytes) -> tuple[bytes, bool]:
            if path != CHAT:
                return super().answer(path, body)
            return (whole, False) if self.heard.count(CHAT) % 2 else (b"", True)

    liar = Half(CHAT, b"")
    async with gateway(liar, redis_settings, tmp_path) as http:
        with growth() as grown_mb:
            for call in range(1, CALLS + 1):
                asking = asyncio.create_task(http.post(CHAT, json=chat_body(best_of=2)))
                await until(lambda: liar.heard.count(CLASSIFY) == call)  # noqa: B023 - awaited at once
                asking.cancel()
                await asyncio.wait([asking])
            await until(lambda: grown_mb() < BODY_MB / 2, timeout_s=5)
        assert 2 * CALLS == liar.heard.count(CHAT)


async def test_no_request_outlives_its_refusal(redis_settings: RedisSettings, tmp_path: Path) -> None:
    """A request that waited in vain for a permit, and one with a wrong body."""
    liar = Liar(CHAT, b"", hangs=True)
    asked = chat_body(messages=[{"role": "user", "content": TEXT}])
    bounds = {"max_in_flight": 1, "queue_timeout_s": 0.05, "deadline_s": LONG_S}
    async with gateway(liar, redis_settings, tmp_path, **bounds) as http:
        racing = asyncio.create_task(http.post(CHAT, json=chat_body()))
        await until(lambda: CHAT in liar.heard)
        with growth() as grown_mb:
            for _ in range(CALLS):
                responses = [await http.post(CHAT, json=body) for body in (asked, {**asked, "seed": "x"})]
                assert [429, 400] == [response.status_code for response in responses]
            del responses
            await until(lambda: grown_mb() < BODY_MB / 2, timeout_s=5)
        racing.cancel()
        await asyncio.wait([racing])
