"""An overdue call gets a competitor: the first to finish wins, and the other is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from gateway.backend.hedging import hedged
from gateway.errors import BackendFailed, BackendUnreachable


class Call:
    """A call that a test ends."""

    def __init__(self) -> None:
        self.started = self.cancelled = False
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self) -> str:
        self.started = True
        try:
            return await self.end
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_call_in_time_has_no_competitor() -> None:
    first, second = Call(), Call()
    first.end.set_result("first")
    assert "first" == await hedged(first.run(), second.run, lambda: 60)
    assert not second.started


async def test_the_competitor_wins_and_the_overdue_call_is_cancelled() -> None:
    first, second = Call(), Call()
    second.end.set_result("second")
    assert "second" == await hedged(first.run(), second.run, lambda: 0)
    assert first.cancelled
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()


async def test_the_overdue_call_wins_and_the_competitor_is_cancelled() -> None:
    first, second = Call(), Call()
    task = asyncio.create_task(hedged(first.run(), second.run, lambda: 0))
    while not second.started:
        await asyncio.sleep(0)
    first.end.set_result("first")
    assert "first" == await task
    await turns()
    assert second.cancelled


async def test_a_call_that_fails_while_it_has_a_competitor_waits_for_that_one() -> None:
    first, second = Call(), Call()
    task = asyncio.create_task(hedged(first.run(), second.run, lambda: 0))
    while not second.started:
        await asyncio.sleep(0)
    first.end.set_exception(BackendUnreachable("broke"))
    await turns()
    assert not task.done()
    second.end.set_result("second")
    assert "second" == await task


async def test_if_both_fail_the_first_ones_error_is_raised() -> None:
    first, second = Call(), Call()
    task = asyncio.create_task(hedged(first.run(), second.run, lambda: 0))
    while not second.started:
        await asyncio.sleep(0)
    second.end.set_exception(BackendFailed("second"))
    await turns()
    assert not task.done()
    first.end.set_exception(BackendUnreachable("first"))
    with pytest.raises(BackendUnreachable):
        await task


async def test_a_cancelled_call_cancels_both() -> None:
    first, second = Call(), Call()
    task = asyncio.create_task(hedged(first.run(), second.run, lambda: 0))
    while not second.started:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert (True, True) == (first.cancelled, second.cancelled)


async def test_a_cancellation_at_the_moment_of_the_competitors_success_is_not_lost() -> None:
    first, second = Call(), Call()
    task = asyncio.create_task(hedged(first.run(), second.run, lambda: 0))
    while not second.started:
        await asyncio.sleep(0)
    second.end.set_result("second")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_late_result_is_passed_on_to_be_closed() -> None:
    first, second = Call(), Call()
    discarded: list[str] = []
    task = asyncio.create_task(hedged(first.run(), second.run, lambda: 0, discarded.append))
    while not second.started:
        await asyncio.sleep(0)
    first.end.set_result("first")
    second.end.set_result("second")
    assert {await task, *discarded} == {"first", "second"} or not discarded


async def test_the_call_goes_on_if_no_competitor_may_start() -> None:
    first = Call()
    asked = 0

    def none() -> None:
        nonlocal asked
        asked += 1

    task = asyncio.create_task(hedged(first.run(), none, lambda: 0))
    while not asked:
        await asyncio.sleep(0)
    first.end.set_result("first")
    assert "first" == await task
