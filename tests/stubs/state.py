"""The state of a stub, so that a test can wait for it and look at it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as received. ``headers`` ignores the case of names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class State:
    """Counters of a stub, and its last requests.

    A ``started`` request ends as ``finished``, ``cancelled`` (the client closed its connection) or ``failed``
    (a fault). ``rejected`` requests were at fault themselves.
    """

    started: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    rejected: int = 0
    requests: deque[RecordedRequest] = field(default_factory=lambda: deque(maxlen=64))
    _waiters: list[tuple[Callable[[Any], bool], asyncio.Future[None]]] = field(default_factory=list)

    def changed(self) -> None:
        """Wake those who wait for a state."""
        for predicate, future in self._waiters:
            if not future.done() and predicate(self):
                future.set_result(None)

    async def until(self, predicate: Callable[[Self], bool], timeout_s: float = 10.0) -> None:
        """Wait until ``predicate`` holds; in-process only.

        Raises:
            TimeoutError: It did not hold in time.
        """
        if predicate(self):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (predicate, future)
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        finally:
            self._waiters.remove(entry)

    def as_json(self) -> dict[str, Any]:
        names = [item.name for item in fields(self) if item.name not in {"requests", "_waiters"}]
        requests = [
            {
                "method": request.method,
                "path": request.path,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "body": request.body.decode("utf-8", "replace"),
            }
            for request in self.requests
        ]
        return {**{name: getattr(self, name) for name in names}, "requests": requests}


@dataclass(slots=True)
class TgiState(State):
    """``generating`` requests hold a permit now; ``tokens_generated`` counts those of cancelled generations, too."""

    generating: int = 0
    peak_generating: int = 0
    overloaded: int = 0
    tokens_generated: int = 0


@dataclass(slots=True)
class RewardState(State):
    """``scoring`` calls run now."""

    scoring: int = 0
    texts_scored: int = 0
    largest_batch: int = 0
