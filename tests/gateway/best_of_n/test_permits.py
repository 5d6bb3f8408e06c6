"""Permits: bounded, shared evenly among races, fair between keys, never lost."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.permits import Grant, Permits
from gateway.errors import Overloaded


def permits(
    limit: int = 4, *, max_waiting: int = 8, queue_timeout_s: float = 5.0, capacity: Callable[[], float] | None = None
) -> Permits:
    capacity = capacity or (lambda: limit)
    return Permits(limit, max_waiting=max_waiting, queue_timeout_s=queue_timeout_s, capacity=capacity)


async def waiting_for(bound: Permits, want: int, *, floor: int = 1, key: str | None = None) -> asyncio.Task[Grant]:
    task = asyncio.create_task(bound.acquire(want, floor=floor, key=key))
    await asyncio.sleep(0)
    return task


async def test_a_race_gets_all_it_wants_while_enough_is_free() -> None:
    bound = permits(8)
    assert 5 == (await bound.acquire(5)).count
    assert 5 == bound.in_flight


async def test_a_single_race_gets_all_permits() -> None:
    assert 8 == (await permits(8).acquire(16)).count


async def test_a_request_waits_for_its_first_permit() -> None:
    bound = permits(2)
    first = await bound.acquire(2)
    second = await waiting_for(bound, 2)
    assert 1 == bound.waiting
    first.release()
    assert 1 == (await second).count


async def test_a_race_gets_no_more_than_its_even_share_of_all_permits() -> None:
    """Also while more are free: running races are followed by others that want as many."""
    bound = permits(8)
    first = await bound.acquire(4)
    await bound.acquire(4)
    third = await waiting_for(bound, 4)
    first.release(3)
    assert 3 == (await third).count  # three races share eight permits, and one of them is nearly over


async def test_the_wait_for_the_even_share_is_at_most_half_the_queues_timeout() -> None:
    bound = permits(8, queue_timeout_s=0.2)
    stuck = await bound.acquire(6)
    started = asyncio.get_running_loop().time()
    assert 2 == (await bound.acquire(4)).count  # its even share is 4
    assert 0.1 <= asyncio.get_running_loop().time() - started < 0.2
    assert 6 == stuck.held


async def test_the_wait_for_the_even_share_is_at_most_as_long_as_a_race_takes() -> None:
    bound = permits(8, queue_timeout_s=5.0)
    usual = await bound.acquire(4)
    await asyncio.sleep(0.1)
    usual.release(4)
    await bound.acquire(6)
    started = asyncio.get_running_loop().time()
    assert 2 == (await bound.acquire(4)).count
    assert 0.09 <= asyncio.get_running_loop().time() - started < 1.0


async def test_a_request_waits_for_its_floor() -> None:
    bound = permits(4)
    first = await bound.acquire(4)
    waiting = await waiting_for(bound, 4, floor=3)
    first.release(2)
    await asyncio.sleep(0)
    assert not waiting.done()
    first.release(1)
    assert 3 == (await waiting).count


async def test_no_request_overtakes_waiting_ones() -> None:
    bound = permits(4)
    running = await bound.acquire(3)
    first = await waiting_for(bound, 2, floor=2)
    second = await waiting_for(bound, 1)
    assert bound.try_acquire(1) is None
    assert not second.done()
    running.release(3)
    assert (2, 1) == ((await first).count, (await second).count)


@pytest.mark.parametrize(("count", "expected"), [(3, True), (4, True), (5, False)])
async def test_all_or_none_takes_exactly_that_many(count: int, expected: bool) -> None:
    bound = permits(4)
    grant = bound.try_acquire(count)
    assert expected == (grant is not None)
    assert (count if expected else 0) == bound.in_flight


async def test_a_full_queue_refuses_at_once() -> None:
    bound = permits(1, max_waiting=0)
    await bound.acquire(1)
    with pytest.raises(Overloaded) as refused:
        await bound.acquire(1)
    assert 5.0 == refused.value.retry_after_s
    assert "the gateway has no capacity left for this request; try again shortly" == refused.value.message


@pytest.mark.parametrize(("queue_timeout_s", "retry_after_s"), [(0.9, 1.0), (1.0, 1.0), (1.1, 1.1)])
async def test_a_refused_caller_is_told_to_wait_for_the_queues_timeout_or_a_second(
    queue_timeout_s: float, retry_after_s: float
) -> None:
    bound = permits(1, max_waiting=0, queue_timeout_s=queue_timeout_s)
    await bound.acquire(1)
    with pytest.raises(Overloaded) as refused:
        await bound.acquire(1)
    assert retry_after_s == refused.value.retry_after_s


@pytest.mark.parametrize(("alphas", "expected"), [(1, "beta"), (2, "alpha")])
async def test_a_full_queue_is_shared_between_keys(alphas: int, expected: str) -> None:
    """The key with more waiters loses its newest one, unless the other key would then have more."""
    bound = permits(1, max_waiting=alphas)
    await bound.acquire(1)
    waiting = [await waiting_for(bound, 1, key="alpha") for _ in range(alphas)]
    beta = await waiting_for(bound, 1, key="beta")
    refused = {"alpha": waiting[-1], "beta": beta}
    with pytest.raises(Overloaded):
        await refused[expected]
    assert [task for name, task in refused.items() if name != expected and task.done()] == []
    assert alphas == bound.waiting
    for task in [*waiting, beta]:
        task.cancel()
    await asyncio.gather(*waiting, beta, return_exceptions=True)
    assert 0 == bound.waiting


async def test_a_callers_wait_does_not_depend_on_the_load_of_another_key() -> None:
    bound = permits(2, max_waiting=300)
    running = [await bound.acquire(1, key="alpha") for _ in range(2)]
    alphas = [await waiting_for(bound, 1, key="alpha") for _ in range(250)]
    beta = await waiting_for(bound, 1, key="beta")
    for grant in running:
        grant.release()
    await asyncio.sleep(0)
    assert beta.done()
    assert 1 == sum(task.done() for task in alphas)
    for task in alphas:
        task.cancel()
    await asyncio.gather(*alphas, return_exceptions=True)


async def test_a_wait_ends_at_its_timeout_and_leaves_no_trace() -> None:
    bound = permits(1, queue_timeout_s=0.01)
    first = await bound.acquire(1)
    with pytest.raises(Overloaded):
        await asyncio.wait_for(bound.acquire(1), timeout=10.0)
    assert 0 == bound.waiting
    first.release()
    assert bound.try_acquire(1) is not None


async def test_a_waiter_that_gives_up_lets_the_next_one_through() -> None:
    bound = permits(4)
    await bound.acquire(2)
    large = await waiting_for(bound, 4, floor=4)
    small = await waiting_for(bound, 1)
    large.cancel()
    assert 1 == (await small).count


async def test_a_grant_in_the_instant_of_cancellation_is_given_back() -> None:
    bound = permits(1)
    first = await bound.acquire(1)
    waiting = await waiting_for(bound, 1)
    first.release()  # grants the waiter, whose task has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert 0 == bound.in_flight


async def test_a_floor_over_the_limit_gets_all_permits() -> None:
    assert 2 == (await permits(2).acquire(8, floor=8)).count


async def test_a_floor_over_the_servers_capacity_is_granted_to_a_single_race() -> None:
    """Its candidates then wait for each other at the server, and the caller gets as many answers as it asked for."""
    bound = permits(8, capacity=lambda: 1)
    first = await bound.acquire(3, floor=3)
    second = await waiting_for(bound, 1)
    assert (3, False) == (first.count, second.done())
    first.release(3)
    assert 1 == (await second).count


async def test_permits_follow_the_servers_capacity() -> None:
    takes = 8
    bound = permits(16, capacity=lambda: takes)
    grants = [await bound.acquire(4) for _ in range(2)]
    takes = 2
    bound.serve()
    waiting = await waiting_for(bound, 2)
    grants[0].release(4)
    await asyncio.sleep(0)
    assert not waiting.done()  # four are still in flight
    takes = 6
    bound.serve()
    assert (6, 2) == (bound.capacity, (await waiting).count)


async def test_each_wave_of_callers_in_step_is_shared_evenly() -> None:
    """Between two waves no race runs; the first race of the next wave must not take all permits."""
    bound = permits(32)

    async def race() -> int:
        grant = await bound.acquire(4)
        await asyncio.sleep(0.05)
        grant.release(grant.count)
        return grant.count

    for _ in range(2):
        counts = await asyncio.gather(*(race() for _ in range(16)))
    assert 0 == bound.in_flight
    assert {2, 3} >= set(counts)


@pytest.mark.parametrize(
    ("callers", "expected"),
    [(16, {4}), (20, {3, 4}), (26, {2, 3}), (31, {2, 3}), (32, {2, 3}), (48, {1, 2}), (100, {1})],
)
async def test_under_steady_load_n_is_spread_over_neighbouring_values(callers: int, expected: set[int]) -> None:
    """64 permits and N = 4; the count begins when each caller has had two answers."""
    bound = permits(64, max_waiting=100)
    counts: Counter[int] = Counter()
    rng = random.Random(1)

    async def draw(grant: Grant) -> None:
        await asyncio.sleep(rng.uniform(0.015, 0.025))
        grant.release()

    async def caller() -> None:
        for index in range(8):
            grant = await bound.acquire(4)
            if index >= 2:
                counts[grant.count] += 1
            await asyncio.gather(*(draw(grant) for _ in range(grant.count)))

    await asyncio.gather(*(caller() for _ in range(callers)))
    often = {n for n, count in counts.items() if count > 0.02 * sum(counts.values())}
    assert often <= expected, counts
    assert max(often) - min(often) <= 1, counts


@pytest.mark.parametrize(("later_s", "expected"), [(0.0, 4), (27.1, 6), (271.0, 8)])
async def test_races_that_ended_are_counted_for_about_as_long_as_a_race_takes(later_s: float, expected: int) -> None:
    """Races took 10 s, then two at once took 100 s: the average is 27.1 s, and after that e times fewer count."""
    now_s = 1_000.0
    bound = Permits(8, max_waiting=0, queue_timeout_s=500.0, clock=lambda: now_s)
    usual = await bound.acquire(4)
    now_s += 10.0
    usual.release(4)
    both = [await bound.acquire(4) for _ in range(2)]
    now_s += 100.0
    for grant in both:
        grant.release(4)
    now_s += later_s
    assert expected == (await bound.acquire(8)).count


async def test_races_that_have_ended_want_nothing() -> None:
    """Also where thirds do not add up to a whole."""
    bound = permits(6)
    grants = [await bound.acquire(3) for _ in range(2)]
    for grant in grants:
        for _ in range(3):
            grant.release()
    assert {} == bound.demand()


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 8),  # wanted
        st.integers(1, 8),  # the floor
        st.sampled_from([None, "alpha", "beta"]),
        st.sampled_from(["runs", "is cancelled waiting", "is cancelled running", "explores"]),
    ),
    max_size=40,
)


@given(REQUESTS, st.integers(1, 8), st.lists(st.integers(1, 12), min_size=1, max_size=10), st.integers(0, 10))
def test_every_permit_comes_back(
    requests: list[tuple[int, int, str | None, str]], limit: int, capacities: list[int], max_waiting: int
) -> None:
    """The bound holds whatever is requested, granted, cancelled or refused, and whatever capacity servers have."""

    async def use(bound: Permits, want: int, floor: int, key: str | None, how: str) -> None:
        if how == "explores":
            grant = bound.try_acquire(want)
            if grant is None:
                return
            assert want == grant.count
        else:
            grant = await bound.acquire(want, floor=floor, key=key)
            assert min(want, floor, limit) <= grant.count <= want
        try:
            assert bound.in_flight <= limit
            while grant.held > 1:
                await asyncio.sleep(0)
                grant.release()
            await asyncio.sleep(0)
        finally:
            grant.release(grant.held)

    async def scenario() -> None:
        takes = capacities[0]
        bound = permits(limit, max_waiting=max_waiting, queue_timeout_s=1.0, capacity=lambda: takes)
        tasks = []
        for index, (want, floor, key, how) in enumerate(requests):
            takes = capacities[index % len(capacities)]
            bound.serve()
            task = asyncio.create_task(use(bound, want, min(want, floor), key, how))
            tasks.append(task)
            await asyncio.sleep(0)
            if how == "is cancelled waiting":
                task.cancel()
            elif how == "is cancelled running":
                await asyncio.sleep(0)
                task.cancel()
        takes = limit
        bound.serve()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [] == [r for r in results if r is not None and not isinstance(r, Overloaded | asyncio.CancelledError)]
        if max_waiting >= len(requests):
            assert [] == [r for r in results if isinstance(r, Overloaded)]
        assert (0, 0, {}) == (bound.in_flight, bound.waiting, bound.demand())

    asyncio.run(scenario())
