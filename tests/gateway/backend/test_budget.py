"""Extra work stays within a share of the ordinary work."""

from __future__ import annotations

from gateway.backend.budget import Budget
from tests.gateway.backend.clock import Clock


def spend(budget: Budget) -> int:
    """Return how much can be withdrawn now."""
    taken = 0
    while budget.withdraw():
        taken += 1
    return taken


def test_a_burst_is_allowed_once() -> None:
    budget = Budget(0.2, floor_per_s=1.0, burst=10, clock=Clock())
    assert (10, 0) == (spend(budget), spend(budget))


def test_ordinary_work_earns_its_share() -> None:
    budget = Budget(0.2, floor_per_s=0.0, burst=10, clock=Clock())
    spend(budget)
    for _ in range(25):
        budget.deposit()
    assert 5 == spend(budget)


def test_time_earns_the_floor_and_never_more_than_the_burst() -> None:
    clock = Clock()
    budget = Budget(0.2, floor_per_s=2.0, burst=10, clock=clock)
    spend(budget)
    clock.now_s += 3
    assert 6 == spend(budget)
    clock.now_s += 1000
    for _ in range(1000):
        budget.deposit()
    assert 10 == spend(budget)
