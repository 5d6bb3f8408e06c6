"""Permits: bounded, first come first served, never lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.permits import Permits
from gateway.errors import Overloaded


def permits(limit: int = 4, *, max_waiting: int = 8, queue_timeout_s: float = 5.0) -> Permits:
    return Permits(limit, max_waiting=max_waiting, queue_timeout_s=queue_timeout_s)


async def test_a_grant_is_what_was_wanted_while_there_is_room() -> None:
    bound = permits(8)
    assert await bound.acquire(5) == 5
    assert bound.in_flight == 5


async def test_a_grant_shrinks_to_what_is_left() -> None:
    bound = permits(8)
    await bound.acquire(5)
    assert await bound.acquire(8) == 3


async def test_a_request_waits_for_its_first_permit() -> None:
    bound = permits(2)
    await bound.acquire(2)
    waiting = asyncio.create_task(bound.acquire(2))
    await asyncio.sleep(0)
    assert bound.waiting == 1
    bound.release()
    assert await waiting == 1


async def test_the_floor_is_waited_for() -> None:
    bound = permits(4)
    await bound.acquire(4)
    waiting = asyncio.create_task(bound.acquire(4, floor=3))
    await asyncio.sleep(0)
    bound.release(2)
    await asyncio.sleep(0)
    assert not waiting.done()
    bound.release(1)
    assert await waiting == 3


async def test_nobody_overtakes_those_who_wait() -> None:
    bound = permits(4)
    await bound.acquire(3)
    first = asyncio.create_task(bound.acquire(2, floor=2))
    await asyncio.sleep(0)
    second = asyncio.create_task(bound.acquire(1))
    await asyncio.sleep(0)
    assert not bound.try_acquire(1)
    assert not second.done()
    bound.release(3)
    assert (await first, await second) == (2, 1)


async def test_a_full_queue_refuses_at_once() -> None:
    bound = permits(1, max_waiting=0)
    await bound.acquire(1)
    with pytest.raises(Overloaded) as refused:
        await bound.acquire(1)
    assert refused.value.retry_after_s >= 1


async def test_a_wait_ends_at_its_timeout_and_leaves_no_trace() -> None:
    bound = permits(1, queue_timeout_s=0.01)
    await bound.acquire(1)
    with pytest.raises(Overloaded):
        await bound.acquire(1)
    assert bound.waiting == 0
    bound.release()
    assert bound.try_acquire(1)


async def test_a_waiter_that_gives_up_lets_the_next_one_through() -> None:
    bound = permits(4)
    await bound.acquire(2)
    large = asyncio.create_task(bound.acquire(4, floor=4))
    await asyncio.sleep(0)
    small = asyncio.create_task(bound.acquire(1))
    await asyncio.sleep(0)
    large.cancel()
    assert await small == 1


async def test_a_grant_in_the_instant_of_cancellation_is_given_back() -> None:
    bound = permits(1)
    await bound.acquire(1)
    waiting = asyncio.create_task(bound.acquire(1))
    await asyncio.sleep(0)
    bound.release()  # grants the waiter, which has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert bound.in_flight == 0


async def test_a_floor_over_the_limit_is_served_by_all_there_is() -> None:
    assert await permits(2).acquire(8, floor=8) == 2


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8), st.booleans()), max_size=40), st.integers(1, 8))
def test_every_permit_comes_back(requests: list[tuple[int, int, bool]], limit: int) -> None:
    """Whatever is asked, granted, cancelled or refused, the bound holds and all permits return."""

    async def use(bound: Permits, want: int, floor: int) -> None:
        granted = await bound.acquire(want, floor=min(want, floor))
        try:
            assert 1 <= granted <= want
            assert bound.in_flight <= limit
            await asyncio.sleep(0)
        finally:
            bound.release(granted)

    async def scenario() -> None:
        bound = permits(limit, max_waiting=100)
        tasks = []
        for want, floor, cancelled in requests:
            task = asyncio.create_task(use(bound, want, floor))
            tasks.append(task)
            await asyncio.sleep(0)
            if cancelled:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for r in results if r is not None and not isinstance(r, asyncio.CancelledError)] == []
        assert (bound.in_flight, bound.waiting) == (0, 0)

    asyncio.run(scenario())
