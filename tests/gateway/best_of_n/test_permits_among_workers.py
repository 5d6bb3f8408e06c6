"""Permits of one worker: it reads what the other workers hold and want, and publishes its own numbers."""

import asyncio

import pytest

from gateway.best_of_n.ledger import Ledger, Neighbours
from gateway.best_of_n.permits import Permits
from tests.gateway.best_of_n.test_permits import waiting_for


class Neighbourhood(Ledger):
    """A ledger without files. It stores what this worker writes; the others take permits as soon as it takes some."""

    def __init__(self, *, taken_at_once: int = 0) -> None:
        self.written: list[dict[str, float]] = []
        self.others = Neighbours()
        self._taken_at_once = taken_at_once

    def write(self, **entry: float) -> None:
        self.written.append(entry)
        if entry["held"]:
            self.others = Neighbours(held=self._taken_at_once)

    def neighbours(self) -> Neighbours:
        return self.others


@pytest.mark.parametrize(("taken", "fits"), [(2, True), (3, False), (4, False)])
async def test_permits_that_another_worker_took_in_the_same_instant_are_given_back(taken: int, fits: bool) -> None:
    ledger = Neighbourhood(taken_at_once=taken)
    bound = Permits(4, max_waiting=1, queue_timeout_s=5.0, ledger=ledger)
    waiting = await waiting_for(bound, 2)
    assert (fits, 2 if fits else 0) == (waiting.done(), bound.in_flight)
    assert (2 if fits else 0) == ledger.written[-1]["held"]
    ledger._taken_at_once, ledger.others = 0, Neighbours()
    assert 2 == (await asyncio.wait_for(waiting, 5.0)).count


async def test_permits_that_other_workers_hold_are_not_free() -> None:
    ledger = Neighbourhood()
    bound = Permits(8, max_waiting=1, queue_timeout_s=5.0, ledger=ledger)
    ledger.others = Neighbours(held=3)
    assert None is bound.try_acquire(6)
    assert [] == ledger.written  # not even for an instant
    grant = bound.try_acquire(5)
    assert grant is not None
    assert (5, 5) == (grant.count, bound.in_flight)


@pytest.mark.parametrize(("demand", "expected"), [({}, 8), ({8: 1.0}, 4), ({2: 1.0}, 6), ({8: 3.0}, 2)])
async def test_the_races_of_other_workers_have_their_even_shares(demand: dict[int, float], expected: int) -> None:
    ledger = Neighbourhood()
    bound = Permits(8, max_waiting=1, queue_timeout_s=5.0, ledger=ledger)
    ledger.others = Neighbours(demand=demand)
    assert expected == (await bound.acquire(8)).count


async def test_a_worker_publishes_its_capacity_its_demand_and_the_floor_of_its_next_request() -> None:
    ledger = Neighbourhood()
    bound = Permits(4, max_waiting=2, queue_timeout_s=5.0, ledger=ledger)
    running = await bound.acquire(4)
    assert {"capacity": 4, "held": 4, "waiting": 0, "races": 1.0, "wanted": 4.0} == ledger.written[-1]
    waiting = [await waiting_for(bound, 5, floor=3), await waiting_for(bound, 2, floor=2)]
    assert {"capacity": 4, "held": 4, "waiting": 3, "races": 3.0, "wanted": 11.0} == ledger.written[-1]
    running.release()
    assert {"capacity": 4, "held": 3, "waiting": 3, "races": 2.75, "wanted": 10.0} == ledger.written[-1]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    running.release(3)
    assert {"capacity": 4, "held": 0, "waiting": 0, "races": 0, "wanted": 0} == ledger.written[-1]
