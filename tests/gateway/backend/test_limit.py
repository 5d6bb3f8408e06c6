"""A server's limit halves on a refusal, grows by one for each limit's worth of successes, and loses no place."""

import asyncio
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backend.limit import ServerLimit, ServerLimits, Turn
from gateway.errors import BackendFailed, BackendOverloaded, BackendUnreachable, GatewayError


def limit_of(ceiling: int = 8, *, queue_timeout_s: float = 5.0, sharers: int = 1) -> ServerLimit:
    return ServerLimit("tgi:80", ceiling=ceiling, queue_timeout_s=queue_timeout_s, sharers=sharers)


async def draw(turn: Turn, error: GatewayError | None = None) -> None:
    async with turn:
        if error is not None:
            raise error


async def refuse(limit: ServerLimit) -> None:
    await refuse_with(limit.turn())


async def refuse_with(turn: Turn) -> None:
    with pytest.raises(BackendOverloaded):
        await draw(turn, BackendOverloaded("full"))


async def answering(capacity: int | None) -> int | None:
    return capacity


@pytest.mark.parametrize(("before", "after"), [(8, 4), (3, 1), (2, 1), (1, 1)])
async def test_a_refusal_halves_the_limit_and_leaves_at_least_one(before: int, after: int) -> None:
    limit = limit_of(before)
    await refuse(limit)
    assert after == limit.limit


async def test_from_a_limit_of_one_the_first_success_leads_to_two() -> None:
    limit = limit_of(8)
    for _ in range(4):
        await refuse(limit)
    assert 1 == limit.limit
    await draw(limit.turn())
    assert 2 == limit.limit


async def test_growth_stops_at_the_ceiling_which_the_next_refusal_halves() -> None:
    limit = limit_of(4)
    limit.share(2)
    for _ in range(50):
        await draw(limit.turn())
    limit.share(4)
    assert 4 == limit.limit
    await refuse(limit)
    assert 2 == limit.limit


async def test_the_refusals_of_one_burst_halve_the_limit_once() -> None:
    limit = limit_of(8)
    turns = [limit.turn() for _ in range(8)]
    for turn in turns:
        await turn.__aenter__()
    for turn in turns:
        await turn.__aexit__(BackendOverloaded, BackendOverloaded("full"), None)
    assert (4, 0) == (limit.limit, limit.in_flight)


async def test_a_draw_that_was_sent_after_the_halving_halves_again() -> None:
    limit = limit_of(8)
    await refuse(limit)
    await refuse(limit)
    assert 2 == limit.limit


@pytest.mark.parametrize(("successes", "expected"), [(3, 4), (4, 5), (8, 5), (9, 6)])
async def test_one_limits_worth_of_successes_raises_the_limit_by_one(successes: int, expected: int) -> None:
    limit = limit_of(8)
    await refuse(limit)
    others = [await limit.acquire(0.0) for _ in range(3)]  # the server is in use
    for _ in range(successes):
        await draw(limit.turn())
    assert (expected, len(others)) == (limit.limit, limit.in_flight)


@pytest.mark.parametrize(("in_use", "expected"), [(1, 5), (0, 4)])
async def test_draws_of_a_server_that_is_less_than_half_used_do_not_raise_the_limit(in_use: int, expected: int) -> None:
    limit = limit_of(8)
    await refuse(limit)
    for _ in range(in_use):
        await limit.acquire(0.0)
    for _ in range(4):
        await draw(limit.turn())
    assert expected == limit.limit


async def test_the_limit_never_rises_above_the_ceiling() -> None:
    limit = limit_of(2)
    await refuse(limit)
    for _ in range(20):
        await draw(limit.turn())
    assert 2 == limit.limit


@pytest.mark.parametrize("error", [BackendFailed("no"), BackendUnreachable("gone")])
async def test_another_failure_is_no_refusal(error: GatewayError) -> None:
    limit = limit_of(8)
    with pytest.raises(type(error)):
        await draw(limit.turn(), error)
    assert (8, 0) == (limit.limit, limit.in_flight)


@pytest.mark.parametrize(
    ("capacity", "sharers", "expected"), [(128, 1, 100), (128, 2, 64), (6, 1, 6), (1, 2, 1), (None, 2, 100)]
)
async def test_the_limit_starts_at_the_servers_capacity_divided_by_the_processes(
    capacity: int | None, sharers: int, expected: int
) -> None:
    limit = limit_of(100, sharers=sharers)
    await limit.learn_capacity(lambda: answering(capacity))
    assert (expected, capacity) == (limit.limit, limit.capacity)


async def test_the_server_is_asked_once_and_again_after_its_connection_broke() -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return 4

    limit = limit_of(100)
    await asyncio.gather(*(limit.learn_capacity(ask) for _ in range(5)))
    await limit.learn_capacity(ask)
    assert 1 == asked
    with pytest.raises(BackendUnreachable):
        await draw(limit.turn(), BackendUnreachable("gone"))
    await limit.learn_capacity(ask)
    assert 2 == asked


async def test_a_server_that_could_not_be_asked_is_asked_by_the_next_draw() -> None:
    async def gone() -> int:
        raise BackendUnreachable("gone")

    limit = limit_of(100)
    with pytest.raises(BackendUnreachable):
        await limit.learn_capacity(gone)
    await limit.learn_capacity(lambda: answering(4))
    assert 4 == limit.limit


async def test_a_draw_beyond_the_limit_waits_for_a_place() -> None:
    limit = limit_of(1)
    first = limit.turn()
    await first.__aenter__()
    second = asyncio.create_task(draw(limit.turn()))
    await asyncio.sleep(0)
    assert (1, 1) == (limit.in_flight, limit.waiting)
    await first.__aexit__(None, None, None)
    await second
    assert (0, 0) == (limit.in_flight, limit.waiting)


async def test_a_larger_share_admits_waiting_draws() -> None:
    limit = limit_of(8)
    limit.share(1)
    await limit.acquire(0.0)
    waiting = asyncio.create_task(draw(limit.turn()))
    await asyncio.sleep(0)
    limit.share(2)
    await asyncio.wait_for(waiting, 1.0)


async def test_a_draw_that_waits_too_long_is_an_overload() -> None:
    limit = limit_of(1, queue_timeout_s=0.02)
    await limit.acquire(0.0)
    with pytest.raises(BackendOverloaded):
        await draw(limit.turn())
    assert (1, 0, 1) == (limit.in_flight, limit.waiting, limit.limit)


async def test_a_refused_draw_may_try_again_until_its_time_is_over() -> None:
    limit = limit_of(1, queue_timeout_s=0.3)
    turn, attempts = limit.turn(), 0
    started = asyncio.get_running_loop().time()
    while True:
        attempts += 1
        with pytest.raises(BackendOverloaded):
            await draw(turn, BackendOverloaded("full"))
        if not await turn.again():
            break
    took_s = asyncio.get_running_loop().time() - started
    assert 0.3 <= took_s < 1.0
    assert 3 <= attempts <= 8  # pauses of about 50, 100 and 200 ms


async def test_a_refused_draw_waits_ahead_of_those_that_were_not_sent_yet() -> None:
    limit = limit_of(2)
    refused, order = limit.turn(), list[str]()
    await refuse_with(refused)  # the limit is 1 from now on
    running = limit.turn()
    await running.__aenter__()

    async def wait(turn: Turn, name: str) -> None:
        async with turn:
            order.append(name)

    waiting = [asyncio.create_task(wait(limit.turn(), "new")), asyncio.create_task(wait(refused, "refused"))]
    await asyncio.sleep(0)
    await running.__aexit__(None, None, None)
    await asyncio.gather(*waiting)
    assert ["refused", "new"] == order


async def test_refusals_are_reported_by_server() -> None:
    refusals: list[str] = []
    limits = ServerLimits(partial(ServerLimit, ceiling=8, on_refusal=refusals.append))
    await refuse(limits.of("http://user:secret@tgi:80/v1"))
    assert ["tgi:80"] == refusals


def test_pools_that_share_a_server_share_its_limit() -> None:
    limits = ServerLimits(partial(ServerLimit, ceiling=8))
    assert limits.of("http://a:1") is limits.of("http://a:1")
    assert limits.of("http://a:1") is not limits.of("http://b:1")


OUTCOMES = st.sampled_from(["succeeds", "is refused", "fails", "is cancelled waiting", "is cancelled drawing"])


@given(st.lists(OUTCOMES, max_size=40), st.integers(1, 6))
def test_every_place_is_released_however_a_draw_ends(outcomes: list[str], ceiling: int) -> None:
    """Cancellation at any point loses no place, and no more draws run than the limit allowed when they began."""

    async def one(limit: ServerLimit, outcome: str) -> None:
        async with limit.turn():
            assert limit.in_flight <= ceiling
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if outcome == "is refused":
                raise BackendOverloaded("full")
            if outcome == "fails":
                raise BackendFailed("no")

    async def scenario() -> None:
        limit = limit_of(ceiling)
        tasks = []
        for outcome in outcomes:
            task = asyncio.create_task(one(limit, outcome))
            tasks.append(task)
            await asyncio.sleep(0)
            if outcome == "is cancelled waiting":
                task.cancel()
            elif outcome == "is cancelled drawing":
                await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        expected = (BackendOverloaded, BackendFailed, asyncio.CancelledError)
        assert [] == [result for result in results if result is not None and not isinstance(result, expected)]
        assert (0, 0) == (limit.in_flight, limit.waiting)
        assert 1 <= limit.limit <= ceiling

    asyncio.run(scenario())
