"""Workers share the permits through the ledger: evenly, all of them, and never more than there are."""

import asyncio
import multiprocessing
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.ledger import Ledger, Neighbours
from gateway.best_of_n.permits import Grant, Permits
from gateway.errors import Overloaded


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def workers(
    opened: ExitStack, folder: Path, count: int, *, total: float, limit: int = 128, max_waiting: int = 400
) -> list[Permits]:
    ledgers = [opened.enter_context(closing(Ledger(folder, count))) for _ in range(count)]
    return [
        Permits(limit, max_waiting=max_waiting, queue_timeout_s=5.0, total_capacity=lambda: total, ledger=ledger)
        for ledger in ledgers
    ]


def test_each_worker_reads_what_the_others_have_written(opened: ExitStack, tmp_path: Path) -> None:
    one, two, three = (opened.enter_context(closing(Ledger(tmp_path, 3))) for _ in range(3))
    one.write(capacity=64, held=10, waiting=1, races=3.0, wanted=12.0)
    two.write(capacity=32, held=5, waiting=0, races=2.0, wanted=2.0)
    assert Neighbours(96, 15, 1, {4: 3.0, 1: 2.0}) == three.neighbours()
    assert Neighbours(32, 5, 0, {1: 2.0}) == one.neighbours()


@pytest.mark.parametrize(("age_s", "counts"), [(4.9, True), (5.0, True), (5.1, False)])
def test_an_entry_that_was_not_written_for_five_seconds_does_not_count(
    opened: ExitStack, tmp_path: Path, age_s: float, counts: bool
) -> None:
    clock = Clock()
    one, two = (opened.enter_context(closing(Ledger(tmp_path, 2, clock=clock))) for _ in range(2))
    one.write(capacity=64, held=10, waiting=0, races=1.0, wanted=4.0)
    clock.now_s += age_s
    assert (10 if counts else 0) == two.neighbours().held


def _hold_and_die(folder: Path) -> None:
    Ledger(folder, 2).write(capacity=64, held=10, waiting=0, races=1.0, wanted=4.0)


def test_the_file_of_a_worker_that_died_is_taken_over_by_the_next(opened: ExitStack, tmp_path: Path) -> None:
    survivor = opened.enter_context(closing(Ledger(tmp_path, 2)))
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert 10 == survivor.neighbours().held
    opened.enter_context(closing(Ledger(tmp_path, 2)))
    assert 0 == survivor.neighbours().held


def test_a_surplus_worker_reads_and_writes_nothing(opened: ExitStack, tmp_path: Path) -> None:
    one, beyond = (opened.enter_context(closing(Ledger(tmp_path, 1))) for _ in range(2))
    beyond.write(capacity=64, held=10, waiting=0, races=1.0, wanted=4.0)
    one.write(capacity=64, held=7, waiting=0, races=1.0, wanted=4.0)
    assert (0, 7) == (one.neighbours().held, beyond.neighbours().held)


async def test_one_worker_may_use_all_while_the_other_is_idle(opened: ExitStack, tmp_path: Path) -> None:
    busy, idle = workers(opened, tmp_path, 2, total=16)
    assert [4, 4, 4, 4] == [(await busy.acquire(4)).count for _ in range(4)]
    assert None is idle.try_acquire(1)


async def test_permits_that_another_worker_gives_back_are_noticed(opened: ExitStack, tmp_path: Path) -> None:
    one, two = workers(opened, tmp_path, 2, total=4)
    grant = await one.acquire(4)
    waiting = asyncio.create_task(two.acquire(4))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    grant.release(4)
    assert 4 == (await asyncio.wait_for(waiting, 1.0)).count


async def test_a_worker_with_few_callers_is_not_starved_by_one_with_many(opened: ExitStack, tmp_path: Path) -> None:
    """Permits that one worker gives back go to the other while it waits for its share."""
    many, few = workers(opened, tmp_path, 2, total=16)
    grants = [await many.acquire(1) for _ in range(16)]
    queued = [asyncio.create_task(many.acquire(1)) for _ in range(300)]
    caller = asyncio.create_task(few.acquire(1))
    await asyncio.sleep(0.02)
    grants[0].release()
    assert 1 == (await asyncio.wait_for(caller, 1.0)).count
    for task in queued:
        task.cancel()
    await asyncio.gather(*queued, return_exceptions=True)


@pytest.mark.parametrize("floor", [1, 3, 7])
async def test_a_worker_whose_share_is_less_than_a_request_needs_gets_what_it_needs(
    opened: ExitStack, tmp_path: Path, floor: int
) -> None:
    """The other worker has a hundred races waiting, and leaves this one the permits that its request needs."""
    many, few = workers(opened, tmp_path, 2, total=8)

    async def race() -> None:
        grant = await many.acquire(1)
        await asyncio.sleep(0.02)
        grant.release()

    flood = [asyncio.create_task(race()) for _ in range(100)]
    await asyncio.sleep(0.01)
    before = sum(task.done() for task in flood)
    assert floor == (await asyncio.wait_for(few.acquire(floor, floor=floor), 1.0)).count
    assert sum(task.done() for task in flood) - before <= 24  # three rounds of eight, of more than twelve
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


@pytest.mark.parametrize(
    ("callers", "expected"), [((40, 24), {2, 3}), ((32, 32), {2, 3}), ((60, 4), {2, 3}), ((20, 20), {3, 4})]
)
async def test_n_is_even_however_callers_are_spread_over_the_workers(
    opened: ExitStack, tmp_path: Path, callers: tuple[int, int], expected: set[int]
) -> None:
    """128 permits, N = 4; the count begins when each caller has had two answers."""
    counts: Counter[int] = Counter()
    rng = random.Random(1)
    both = workers(opened, tmp_path, 2, total=128)
    most = 0

    async def draw(grant: Grant) -> None:
        nonlocal most
        most = max(most, sum(bound.in_flight for bound in both))
        await asyncio.sleep(rng.uniform(0.03, 0.05))
        grant.release()

    async def caller(bound: Permits) -> None:
        for index in range(8):
            grant = await bound.acquire(4)
            if index >= 2:
                counts[grant.count] += 1
            await asyncio.gather(*(draw(grant) for _ in range(grant.count)))

    await asyncio.gather(*(caller(bound) for bound, number in zip(both, callers, strict=True) for _ in range(number)))
    assert most <= 128
    often = {n for n, count in counts.items() if count > 0.03 * sum(counts.values())}
    assert often <= expected, counts
    assert max(often) - min(often) <= 1, counts


STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 8), st.sampled_from(["runs", "explores", "is cancelled"])), max_size=30
)


@given(STEPS, st.integers(1, 12))
def test_three_workers_never_hold_too_many_permits_and_give_all_back(
    steps: list[tuple[int, int, str]], total: int
) -> None:
    async def use(all_of_them: list[Permits], bound: Permits, want: int, how: str) -> None:
        grant = bound.try_acquire(want) if how == "explores" else await bound.acquire(want)
        if grant is None:
            return
        assert sum(one.in_flight for one in all_of_them) <= total
        try:
            await asyncio.sleep(0)
        finally:
            grant.release(grant.held)

    async def scenario(bounds: list[Permits]) -> None:
        tasks = []
        for which, want, how in steps:
            tasks.append(asyncio.create_task(use(bounds, bounds[which], want, how)))
            await asyncio.sleep(0)
            if how == "is cancelled":
                tasks[-1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [] == [r for r in results if r is not None and not isinstance(r, Overloaded | asyncio.CancelledError)]
        assert [(0, 0)] * 3 == [(one.in_flight, one.waiting) for one in bounds]

    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        asyncio.run(scenario(workers(opened, folder, 3, total=total)))
