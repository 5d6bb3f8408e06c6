"""Dynamic batching: entries that wait at the same time are scored in one batch. Knows no torch and no HTTP.

An entry is a payload, its length in tokens and a reply. A batch is bounded by its padded tokens (entries × longest).
It holds entries of similar length, so that it has little padding, and always the oldest entry, so that none starves.
A cancelled entry leaves the queue before it costs anything; a batch that fails fails its own entries only.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import structlog

from gateway.errors import RewardError
from gateway.types import BatchStats

MAX_QUEUE = 4096
"""Entries that may wait for a reward model; the races of more fall back."""

Payload = TypeVar("Payload")
Result = TypeVar("Result")

_log = structlog.get_logger()


class QueueFull(RewardError):
    """The queue is full; the entry was not taken."""


@dataclass(eq=False, slots=True)
class _Entry(Generic[Payload, Result]):
    payload: Payload
    tokens: int
    reply: asyncio.Future[Result]
    arrived_s: float
    context: Context = field(default_factory=copy_context)
    batch: _Batch[Payload, Result] | None = None


@dataclass(eq=False, slots=True)
class _Batch(Generic[Payload, Result]):
    entries: list[_Entry[Payload, Result]]
    started_s: float
    waiting: int
    task: asyncio.Task[Sequence[Result | RewardError]] = field(init=False)


class Batcher(Generic[Payload, Result]):
    """Collects entries into batches and hands each waiter its own result.

    Args:
        run: Score a batch, in order; an entry's own failure is a ``RewardError`` in its place.
        max_batch_tokens: Padded tokens of a batch. A longer entry runs alone.
        max_wait_ms: Longest time the oldest entry waits for more entries while ``run`` is free; 0 takes those that
            arrive in the same turn of the event loop.
        max_queue: Entries that may wait.
        concurrency: Batches in ``run`` at once.
        launch_tokens: Cost of starting a batch, in tokens: weighs fewer batches against less padding. May be set
            later, when the model's device is known.
        abort_unwanted: Cancel ``run`` when all entries of its batch are cancelled (possible for a call, not for a
            thread).
        observe: Called with each batch that ended.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Payload]], Awaitable[Sequence[Result | RewardError]]],
        *,
        max_batch_tokens: int,
        max_wait_ms: float,
        max_queue: int,
        concurrency: int = 1,
        launch_tokens: int = 256,
        abort_unwanted: bool = False,
        observe: Callable[[BatchStats], None] | None = None,
    ) -> None:
        self._run = run
        self._max_batch_tokens = max_batch_tokens
        self._max_wait_s = max_wait_ms / 1000
        self._max_queue = max_queue
        self._concurrency = concurrency
        self.launch_tokens = launch_tokens
        self._abort_unwanted = abort_unwanted
        self._observe = observe
        self._waiting: OrderedDict[_Entry[Payload, Result], None] = OrderedDict()  # oldest first
        self._waiting_tokens = 0
        self._running: set[_Batch[Payload, Result]] = set()
        self._wake_up: asyncio.Handle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, payload: Payload, tokens: int) -> asyncio.Future[Result]:
        """Queue an entry; the future gives its result, and cancelling it drops the entry.

        Raises:
            QueueFull: ``max_queue`` entries wait already.
            RewardError: The batcher is closed.
        """
        if self._closed:
            raise RewardError("scoring has stopped")
        if len(self._waiting) >= self._max_queue:
            raise QueueFull(f"{self._max_queue} answers wait for the reward model already")
        loop = asyncio.get_running_loop()
        entry = _Entry[Payload, Result](payload, max(1, tokens), loop.create_future(), loop.time())
        entry.reply.add_done_callback(partial(self._drop_if_cancelled, entry))
        self._waiting[entry] = None
        self._waiting_tokens += entry.tokens
        self._wake()
        return entry.reply

    async def aclose(self) -> None:
        """Refuse waiting and new entries; let running batches end, or cancel them if that is allowed."""
        self._closed = True
        if self._wake_up is not None:
            self._wake_up.cancel()
        for entry in self._waiting:
            _resolve(entry, RewardError("scoring has stopped"))
        self._waiting.clear()
        tasks = [batch.task for batch in self._running]
        if self._abort_unwanted:
            for task in tasks:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _drop_if_cancelled(self, entry: _Entry[Payload, Result], reply: asyncio.Future[Result]) -> None:
        if not reply.cancelled():
            return
        if entry in self._waiting:
            self._forget(entry)
        elif self._abort_unwanted and entry.batch is not None and all(e.reply.cancelled() for e in entry.batch.entries):
            entry.batch.task.cancel()

    def _forget(self, entry: _Entry[Payload, Result]) -> None:
        del self._waiting[entry]
        self._waiting_tokens -= entry.tokens

    def _wake(self) -> None:
        """Look at the queue after this turn of the event loop, so that entries of one turn share a batch."""
        if len(self._running) >= self._concurrency or self._closed:
            return  # the end of a batch looks again
        if self._wake_up is None or self._waiting_tokens >= self._max_batch_tokens:
            if self._wake_up is not None:
                self._wake_up.cancel()
            # In no request's context: a batch serves many, and its log lines must not carry the id of just one.
            self._wake_up = asyncio.get_running_loop().call_soon(self._start_batches, context=Context())

    def _start_batches(self) -> None:
        self._wake_up = None
        loop = asyncio.get_running_loop()
        for entry in [entry for entry in self._waiting if entry.reply.cancelled()]:
            self._forget(entry)
        while self._waiting and len(self._running) < self._concurrency:
            due_s = next(iter(self._waiting)).arrived_s + self._max_wait_s
            if loop.time() < due_s and self._waiting_tokens < self._max_batch_tokens:
                self._wake_up = loop.call_at(due_s, self._start_batches)
                return
            self._start(self._take(), loop)

    def _take(self) -> list[_Entry[Payload, Result]]:
        oldest = next(iter(self._waiting))
        by_length = sorted(self._waiting, key=lambda entry: entry.tokens)
        window = choose_window(
            [entry.tokens for entry in by_length],
            by_length.index(oldest),
            max_batch_tokens=self._max_batch_tokens,
            launch_tokens=self.launch_tokens,
        )
        taken = by_length[window]
        for entry in taken:
            self._forget(entry)
        return taken

    def _start(self, entries: list[_Entry[Payload, Result]], loop: asyncio.AbstractEventLoop) -> None:
        batch = _Batch(entries, loop.time(), len(self._waiting))
        for entry in entries:
            entry.batch = batch
        batch.task = loop.create_task(self._results([entry.payload for entry in entries]))
        self._running.add(batch)
        batch.task.add_done_callback(partial(self._finish, batch))

    async def _results(self, payloads: Sequence[Payload]) -> Sequence[Result | RewardError]:
        # Not given the batch: batch → task → exception → this frame → batch would be a reference cycle.
        results = await self._run(payloads)
        if len(results) != len(payloads):
            raise RewardError(f"the reward model gave {len(results)} rewards for {len(payloads)} answers")
        return results

    def _finish(self, batch: _Batch[Payload, Result], task: asyncio.Task[Sequence[Result | RewardError]]) -> None:
        self._running.discard(batch)
        error = _failure(task, batch.entries)
        for position, entry in enumerate(batch.entries):
            _resolve(entry, task.result()[position] if error is None else type(error)(error.message))
            entry.batch = None  # no reference cycle for the collector to find
        if self._observe is not None:
            self._observe(_stats(batch, failed=error is not None))
        self._wake()


def choose_window(lengths: Sequence[int], oldest: int, *, max_batch_tokens: int, launch_tokens: int) -> slice:
    """Choose the waiting entries, ascending by length, of the next batch: a window around the oldest one.

    The window grows by the neighbour that raises the share of real tokens most, where starting the batch counts as
    ``launch_tokens`` of padding. It stops when no neighbour raises the share or fits.

    Args:
        lengths: Tokens of each waiting entry, ascending.
        oldest: Position of the oldest entry.
        max_batch_tokens: Bound of entries × longest.
        launch_tokens: Cost of starting a batch, in tokens.
    """
    first, last = oldest, oldest + 1
    tokens = lengths[oldest]
    share = tokens / (tokens + launch_tokens)
    while True:
        size = last - first + 1
        best = (share, 0, 0)
        if first > 0 and size * lengths[last - 1] <= max_batch_tokens:
            best = max(best, ((tokens + lengths[first - 1]) / (size * lengths[last - 1] + launch_tokens), 1, 0))
        if last < len(lengths) and size * lengths[last] <= max_batch_tokens:
            best = max(best, ((tokens + lengths[last]) / (size * lengths[last] + launch_tokens), 0, 1))
        if best[0] <= share:
            return slice(first, last)
        share, shorter, longer = best
        tokens += lengths[first - 1] if shorter else lengths[last]
        first, last = first - shorter, last + longer


def _resolve(entry: _Entry[Payload, Result], result: Result | RewardError) -> None:
    if entry.reply.done():
        return
    if isinstance(result, RewardError):
        entry.reply.set_exception(result)
    else:
        entry.reply.set_result(result)


def _failure(
    task: asyncio.Task[Sequence[Result | RewardError]], entries: Iterable[_Entry[Payload, Result]]
) -> RewardError | None:
    """Return the error of a batch that failed. A defect in ``run`` becomes one too: no waiter may hang."""
    if task.cancelled():
        return RewardError("scoring has stopped")
    error = task.exception()
    if error is None or isinstance(error, RewardError):
        return error
    _log.error("reward_batch_failed", error=type(error).__name__, requests=_requests(entries), exc_info=error)
    return RewardError(f"the reward model failed: {type(error).__name__}")


def _requests(entries: Iterable[_Entry[Payload, Result]]) -> list[str]:
    """Return the ids, as in log lines, of the requests to which these entries belong."""
    found = (entry.context.run(structlog.contextvars.get_contextvars).get("request") for entry in entries)
    return sorted({request for request in found if request})


def _stats(batch: _Batch[Payload, Result], *, failed: bool) -> BatchStats:
    lengths = [entry.tokens for entry in batch.entries]
    ended_s = asyncio.get_running_loop().time()
    return BatchStats(
        entries=len(lengths),
        tokens=sum(lengths),
        padded_tokens=len(lengths) * max(lengths),
        wait_ms=(batch.started_s - min(entry.arrived_s for entry in batch.entries)) * 1000,
        run_ms=(ended_s - batch.started_s) * 1000,
        waiting=batch.waiting,
        failed=failed,
    )
