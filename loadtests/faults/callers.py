"""Clients under load while a fault strikes: the outcome of each request, and the id of each acknowledged answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

STREAMED_EVERY = 4  # one request in four is streamed
_TIMEOUT_S = 30.0
MAX_TOKENS = 128  # longer than any answer of the stub: a truncated answer would lose its race
_PAUSE_S = 0.05  # between a caller's requests, so that a refused caller does not spin
Outcome = tuple[str, str | None, int | None]
"""The outcome of a request in a word; its completion's id and its N if it was answered."""

NORMAL = frozenset({"scored"})
_ANSWERED = frozenset({"scored", "fallback", "single"})


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as its client saw it, on this process's monotonic clock.

    ``outcome`` is the selection of a whole answer (``scored``, ``fallback``, ``single``); an HTTP status; the code of
    an error event in a stream; ``refused`` (no connection), ``cut`` (the connection broke before the answer was whole)
    or ``silent`` (no answer within the timeout). ``id`` is the completion's: its record was acknowledged.
    """

    started_s: float
    ended_s: float
    outcome: str
    id: str | None = None
    n: int | None = None
    """Draws of its race, where an answer came."""

    @property
    def answered(self) -> bool:
        """Return whether a whole answer came, by any selection."""
        return self.outcome in _ANSWERED

    @property
    def seconds(self) -> float:
        return self.ended_s - self.started_s


class Callers:
    """Clients that each send one request after the other until the block ends; none sends a request again.

    Args:
        url: The gateway's.
        callers: Requests in flight.
        n: N of every request.
    """

    def __init__(self, url: str, *, callers: int, n: int) -> None:
        self.seen: list[Seen] = []
        self._url = url
        self._n = n
        self._callers = callers
        self._numbers = 0
        self._ending = False
        self._tasks: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        # A connection for each request: the server may close an idle one just as a request is sent on it, which would
        # look like a cut answer.
        self._session = aiohttp.ClientSession(
            self._url,
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        )
        self._tasks = [asyncio.create_task(self._send_on(), name=f"caller-{index}") for index in range(self._callers)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Let the requests in flight end, unless the block failed."""
        self._ending = True
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()
        defects = [one for one in results if isinstance(one, Exception)]
        if kind is None and defects:
            raise defects[0]

    def acknowledged(self) -> set[str]:
        """Return the ids of the completions that clients got whole."""
        return {one.id for one in self.seen if one.id is not None}

    async def _send_on(self) -> None:
        while not self._ending:
            self._numbers += 1
            started_s = time.monotonic()
            outcome, identity, n = await send_chat(self._session, self._numbers, self._n)
            self.seen.append(Seen(started_s, time.monotonic(), outcome, identity, n))
            await asyncio.sleep(_PAUSE_S)


async def send_chat(session: aiohttp.ClientSession, number: int, n: int) -> Outcome:
    """Send a chat, one in four streamed, and read it to its last byte.

    Args:
        session: On the gateway's URL.
        number: Makes the question differ from all others.
        n: N.
    """
    streamed = number % STREAMED_EVERY == 0
    body: dict[str, Any] = {
        "model": "ratchet",
        "messages": [{"role": "user", "content": f"Question {number}: what floats on the harbour?"}],
        "max_tokens": MAX_TOKENS,
        "best_of": n,
        "stream": streamed,
    }
    try:
        async with session.post("/v1/chat/completions", json=body) as response:
            raw = await response.read()
    except aiohttp.ClientConnectorError:
        return "refused", None, None
    except (aiohttp.ClientError, ConnectionError):
        return "cut", None, None
    except TimeoutError:
        return "silent", None, None
    if response.status != 200:
        return str(response.status), None, None
    return outcome_of_stream(raw) if streamed else outcome_of_answer(raw)


def outcome_of_answer(raw: bytes) -> Outcome:
    """Return outcome, id and N of a whole answer."""
    body = orjson.loads(raw)
    return str(body["best_of_n"]["selection"]), str(body["id"]), int(body["best_of_n"]["n"])


def outcome_of_stream(raw: bytes) -> Outcome:
    """Return outcome, id and N of a stream that ended. It is whole only with its report and ``[DONE]``."""
    events = [line.removeprefix(b"data: ") for line in raw.split(b"\n") if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return "cut", None, None
    chunks = [orjson.loads(event) for event in events[:-1]]
    for chunk in chunks:
        if "error" in chunk:
            return str(chunk["error"]["code"]), None, None
    reports = [chunk for chunk in chunks if "best_of_n" in chunk]
    if not reports:
        return "cut", None, None
    return str(reports[-1]["best_of_n"]["selection"]), str(reports[-1]["id"]), int(reports[-1]["best_of_n"]["n"])


def counts(seen: Sequence[Seen]) -> dict[str, int]:
    """Return the number of requests with each outcome, the most frequent first."""
    return dict(Counter(one.outcome for one in seen).most_common())


def normal_after_s(seen: Sequence[Seen], since_s: float, normal: Set[str] = NORMAL) -> float | None:
    """Return the seconds from ``since_s`` until the last request without a normal outcome ended; 0 if none did later.

    None if no request that began after it had a normal outcome.
    """
    bad_s = max((one.ended_s for one in seen if one.outcome not in normal), default=since_s)
    if not any(one.outcome in normal and one.started_s >= max(bad_s, since_s) for one in seen):
        return None
    return max(0.0, bad_s - since_s)
