"""Calls of which one runs at a time: one that all who ask share, or one for each key."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

K = TypeVar("K")
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


class KeyedTasks(Generic[K]):
    """Background tasks, one at a time for each key; their log lines belong to no request."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[None]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, key: K, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the call, unless one runs for this key."""
        if key not in self._tasks:
            task = self._tasks[key] = asyncio.create_task(call(), context=contextvars.Context())
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def aclose(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
