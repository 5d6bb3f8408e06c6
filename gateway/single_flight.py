"""One running call whose result all who ask at the same time share."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs a call once for all who ask while it runs. Cancelling one of them does not cancel the call.

    Args:
        done: Called with the ended task, before those who wait for it go on.
    """

    def __init__(self, done: Callable[[asyncio.Task[T]], object] = lambda _: None) -> None:
        self._done = done
        self._task: asyncio.Task[T] | None = None

    @property
    def running(self) -> bool:
        return self._task is not None

    def start(self, call: Callable[[], Coroutine[Any, Any, T]]) -> asyncio.Task[T]:
        """Return the running call; start this one, whose log lines belong to no request, if none runs."""
        if self._task is None:
            self._task = asyncio.create_task(call(), context=contextvars.Context())
            self._task.add_done_callback(self._ended)
        return self._task

    async def result(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await asyncio.shield(self.start(call))

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # retrieved: those who wait may all have been cancelled
        self._done(task)
