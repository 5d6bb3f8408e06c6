"""Concurrent workers that share one source of work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

Worker = Callable[[], Coroutine[None, None, None]]


async def run_workers(worker: Worker, count: int, *expected: type[Exception]) -> None:
    """Run ``count`` workers at once; if one fails, cancel the others and raise the first expected error by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(worker())
    except ExceptionGroup as errors:  # not except*: early Python 3.11 wraps what is raised there once more
        found = errors.subgroup(expected)
        if found is None:
            raise
        first: Exception = found
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from errors
