"""A hostile case as data: the attempt and its acceptable outcomes; and the gateway's answer."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

import orjson

from loadtests.hostile.impostor import Script

# Planted words: no log line, no metric and no error may hold one.
PROMPT, KEY, ANSWER = "zyzzyva-prompt", "zyzzyva-key", "zyzzyva-answer"
MARKS = (PROMPT, KEY, ANSWER)
MESSAGES = [{"role": "user", "content": f"What does a {PROMPT} eat?"}]

HOST = b"host: x\r\n"
CLOSE = b"connection: close\r\n"
JSON = b"content-type: application/json\r\n"
CHAT = "/v1/chat/completions"

Kind = Literal["tgi", "vllm", "llamacpp"]
Blame = Literal["nobody", "caller", "upstream", "ours"]
_MANY = 100
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) [A-Za-z -]*\r\n")
_ERROR_EVENT = re.compile(rb'^data: ?(\{"error":.*)$', re.MULTILINE)
_REPORT = re.compile(rb'"selection":"(scored|fallback|single)"')


def key(name: str) -> str:
    """Return the API key of this name, which must appear in no log, metric or error."""
    return f"rk-{KEY}-{name}"


def bearer(name: str = "chat") -> bytes:
    """Return the header that sends it."""
    return f"authorization: Bearer {key(name)}\r\n".encode()


def post(body: bytes, *headers: bytes, path: str = CHAT, caller: str = "chat", close: bytes = CLOSE) -> bytes:
    """Return a whole, well-formed POST of these bytes."""
    length = b"content-length: %d\r\n" % len(body)
    line = f"POST {path} HTTP/1.1\r\n".encode()
    return b"".join((line, HOST, JSON, bearer(caller), close, *headers, length, b"\r\n", body))


def get(path: str, *headers: bytes, method: str = "GET") -> bytes:
    """Return a whole request without a body."""
    return f"{method} {path} HTTP/1.1\r\n".encode() + HOST + CLOSE + b"".join(headers) + b"\r\n"


def chat(**fields: Any) -> dict[str, Any]:
    """Return a good request of one draw, far below the token limit, with ``fields`` on top."""
    return {"model": "ratchet", "messages": MESSAGES, "best_of": 1, "max_tokens": 200, **fields}


def ask(**fields: Any) -> bytes:
    """Return a good request as HTTP."""
    return post(orjson.dumps(chat(**fields)))


class Target(Protocol):
    """The gateway, and the Redis behind it, as an act reaches them."""

    @property
    def address(self) -> tuple[str, int]:
        pass

    @property
    def redis_url(self) -> str:
        """The URL of Redis itself, without the impostor."""

    async def say(self, *parts: bytes) -> Answer:
        """Send these bytes on a new connection and return the answer."""


@dataclass(frozen=True, slots=True)
class Case:
    """One attempt.

    Attributes:
        id: Its name, group first: ``json-nested-lists``.
        tried: The attempt in one sentence.
        allowed: The acceptable outcomes, in the words of ``Answer.outcome``.
        send: The parts that the caller sends.
        pause_s: Pause between the parts.
        hang_up: The caller closes its sending side after the last part.
        reads: The caller reads the answer.
        backend: The backend's script, if it is the hostile party; ``reward`` and ``redis`` likewise.
        stored: Redis commands to run before the case; the keys they name are restored after it.
        forgets: The gateway must detect the reward server's dialect again.
        act: A coroutine to run in place of ``send``.
        kind: The kind of backend that it is tried on.
        within_s: Time limit of the answer, beyond the time of an ordinary draw.
    """

    id: str
    tried: str
    allowed: frozenset[str]
    send: tuple[bytes, ...] = ()
    pause_s: float = 0.0
    hang_up: bool = False
    reads: bool = True
    backend: Script | None = None
    reward: Script | None = None
    redis: Script | None = None
    stored: tuple[tuple[bytes | str, ...], ...] = ()
    forgets: bool = False
    act: Callable[[Target], Awaitable[str]] | None = None
    kind: Kind = "tgi"
    within_s: float = math.inf

    @property
    def group(self) -> str:
        """The group of the catalogue that the case belongs to."""
        return self.id.partition("-")[0]

    @property
    def in_redis(self) -> bool:
        """Return whether the gateway itself meets the fault in Redis."""
        return self.redis is not None or (bool(self.stored) and self.act is None)


def words(allowed: str | Iterable[str]) -> frozenset[str]:
    """Return a set of outcomes; in a text they are separated by commas."""
    return frozenset(allowed.split(",") if isinstance(allowed, str) else allowed)


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything that the gateway sent on one connection, and whether it then closed it."""

    raw: bytes
    closed: bool

    @property
    def outcome(self) -> str:
        """The statuses, and for a chat its selection; ``cut`` or ``silent`` without a status.

        ``200×5`` stands for five in a row; more than a hundred count as a hundred.
        """
        runs = [(status.decode(), len(list(same))) for status, same in groupby(_STATUS.findall(self.raw))]
        statuses = "+".join(status if count == 1 else f"{status}×{min(count, _MANY)}" for status, count in runs)
        if not statuses:
            return "cut" if self.closed else "silent"
        if _ERROR_EVENT.search(self.raw):
            return f"{statuses} error event"
        found = _REPORT.findall(self.raw)
        return f"{statuses} {found[-1].decode()}" if found else statuses

    @property
    def error(self) -> bytes:
        """The error in the answer, headers included; empty if there is none."""
        event = _ERROR_EVENT.search(self.raw)
        if event:
            return event[1]
        return b"" if all(status == b"200" for status in _STATUS.findall(self.raw)) else self.raw

    @property
    def code(self) -> str | None:
        """The error's code in OpenAI's envelope."""
        found = re.search(rb'"code":"([a-z_]+)"\}\}', self.error)
        return found[1].decode() if found else None

    @property
    def blame(self) -> Blame:
        """The party at fault by the answer: a 5xx whose code names the backend is not one of ours."""
        statuses = [int(status) for status in _STATUS.findall(self.raw)]
        if (self.code or "").startswith(("backend_", "deadline_exceeded")):
            return "upstream"
        if any(status >= 500 for status in statuses) or _ERROR_EVENT.search(self.raw):
            return "ours"
        return "caller" if any(status >= 400 for status in statuses) else "nobody"
