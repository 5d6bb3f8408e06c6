"""What a stub did and is doing, so that a test can wait for it and look at it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as it came in. ``headers`` ignores the case of names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class State:
    """Counters of a stub, and its last requests.

    ``started`` generations end as ``finished``, ``cancelled`` (the client closed its connection) or ``failed`` (a
    fault); until then they are ``generating``. ``tokens_generated`` counts the tokens of cancelled ones up to then.
    """

    generating: int = 0
    peak_generating: int = 0
    started: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    overloaded: int = 0
    rejected: int = 0
    tokens_generated: int = 0
    requests: deque[RecordedRequest] = field(default_factory=lambda: deque(maxlen=64))
    _waiters: list[tuple[Callable[[State], bool], asyncio.Future[None]]] = field(default_factory=list)

    def changed(self) -> None:
        """Wake whoever waited for what is true now."""
        if self._waiters:
            for predicate, future in self._waiters:
                if not future.done() and predicate(self):
                    future.set_result(None)

    async def until(self, predicate: Callable[[State], bool], timeout_s: float = 10.0) -> None:
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
        """The state for GET /_stub/state."""
        counters = {name: getattr(self, name) for name in self.__slots__ if name not in {"requests", "_waiters"}}
        requests = [
            {
                "method": request.method,
                "path": request.path,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "body": request.body.decode("utf-8", "replace"),
            }
            for request in self.requests
        ]
        return {**counters, "requests": requests}
