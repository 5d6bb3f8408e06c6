"""A hostile case as data: what is tried, in whose name, and what may come of it; and what did."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

import orjson

from loadtests.hostile.impostor import Script

# Planted where nobody may find them again: no log line, no metric and no error may hold one.
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
    """The API key of this name, which itself must never be seen again."""
    return f"rk-{KEY}-{name}"


def bearer(name: str = "chat") -> bytes:
    """The header that sends it."""
    return f"authorization: Bearer {key(name)}\r\n".encode()


def post(body: bytes, *headers: bytes, path: str = CHAT, caller: str = "chat", close: bytes = CLOSE) -> bytes:
    """A whole, well-formed POST of these bytes."""
    length = b"content-length: %d\r\n" % len(body)
    line = f"POST {path} HTTP/1.1\r\n".encode()
    return b"".join((line, HOST, JSON, bearer(caller), close, *headers, length, b"\r\n", body))


def get(path: str, *headers: bytes, method: str = "GET") -> bytes:
    """A whole request without a body."""
    return f"{method} {path} HTTP/1.1\r\n".encode() + HOST + CLOSE + b"".join(headers) + b"\r\n"


def chat(**fields: Any) -> dict[str, Any]:
    """A good request of one draw, which needs fewer tokens than it may take, with ``fields`` on top."""
    return {"model": "ratchet", "messages": MESSAGES, "best_of": 1, "max_tokens": 200, **fields}


def ask(**fields: Any) -> bytes:
    """The same as HTTP."""
    return post(orjson.dumps(chat(**fields)))


class Target(Protocol):
    """What an act reaches: the gateway, and the Redis behind it."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the gateway."""

    @property
    def redis_url(self) -> str:
        """The Redis itself, past the impostor before it."""

    async def say(self, *parts: bytes) -> Answer:
        """Send these bytes on a new connection and hear what comes."""


@dataclass(frozen=True, slots=True)
class Case:
    """One attempt.

    Attributes:
        id: Its name, group first: ``json-nested-lists``.
        tried: What is tried, in one sentence.
        allowed: The outcomes that are acceptable, in the words of ``Answer.outcome``.
        send: What the caller sends, part by part.
        pause_s: Between the parts.
        hang_up: Whether the caller closes its sending side after the last part.
        reads: Whether it reads the answer at all.
        backend: What the backend says, where it is the hostile one; ``reward`` and ``redis`` likewise.
        stored: Redis commands before it; the keys they name are restored after it.
        forgets: The gateway has to meet the reward server anew.
        act: What else it takes, in place of ``send``.
        kind: The kind of backend that it is tried on.
        within_s: By when it must be answered, beside the time of an ordinary draw.
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
        """The part of the catalogue it belongs to."""
        return self.id.partition("-")[0]

    @property
    def in_redis(self) -> bool:
        """Whether the gateway itself meets what is wrong in Redis."""
        return self.redis is not None or (bool(self.stored) and self.act is None)


def words(allowed: str | Iterable[str]) -> frozenset[str]:
    """Outcomes, separated by commas where they are one text."""
    return frozenset(allowed.split(",") if isinstance(allowed, str) else allowed)


@dataclass(frozen=True, slots=True)
class Answer:
    """All that the gateway said on one connection, and whether it then closed it."""

    raw: bytes
    closed: bool

    @property
    def outcome(self) -> str:
        """Its statuses, and of a chat how its answer was chosen; ``cut`` or ``silent`` where there is none.

        ``200×5`` is five of them; more than a hundred are counted as a hundred.
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
        """What it says of an error, headers included; nothing of an answer."""
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
        """Whose fault the answer says it is: a 5xx whose code names the backend is not one of ours."""
        statuses = [int(status) for status in _STATUS.findall(self.raw)]
        if (self.code or "").startswith(("backend_", "deadline_exceeded")):
            return "upstream"
        if any(status >= 500 for status in statuses) or _ERROR_EVENT.search(self.raw):
            return "ours"
        return "caller" if any(status >= 400 for status in statuses) else "nobody"
