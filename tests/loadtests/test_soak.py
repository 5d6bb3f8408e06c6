"""The soak's own arithmetic: what counts as growth, and what fails a run."""

from __future__ import annotations

import random

import pytest

from loadtests.growth import Allowance, Growth, growth
from loadtests.soak import verdict

FLAT = {"memory_mb": Growth(100.0, 101.0, False)}


def test_noise_around_a_constant_is_no_growth() -> None:
    """Medians of thirds do not follow single peaks."""
    noise = random.Random(0)
    samples = [100.0 + noise.uniform(-5, 5) for _ in range(200)]
    samples[-1] = 500.0
    assert not growth(samples, Allowance(0.05, 1.0)).grows


def test_a_steady_leak_is_growth() -> None:
    """So is one that is slow."""
    found = growth([100.0 + 0.2 * second for second in range(100)], Allowance(0.05, 1.0))
    assert found.grows
    assert found.before < found.after


def test_the_warm_up_is_left_out() -> None:
    """A cache that fills at the start is not a leak."""
    assert not growth([10.0] * 20 + [100.0] * 80, Allowance(0.0, 0.0)).grows


def test_nothing_is_allowed_where_nothing_is_allowed() -> None:
    """One entry left behind by each call shows, however few there were."""
    assert growth([0.0] * 50 + [1.0] * 50, Allowance(0.0, 0.0)).grows
    assert not growth([0.0] * 100, Allowance(0.0, 0.0)).grows


def test_too_few_samples_say_so() -> None:
    """They are not taken for a flat line."""
    with pytest.raises(ValueError, match="too few"):
        growth([1.0, 1.0], Allowance(0.0, 0.0))


@pytest.mark.parametrize(
    ("found", "outcomes", "missing", "complaint"),
    [
        ({"tasks": Growth(10.0, 99.0, True)}, {"scored": 9}, 0, "tasks grows from 10 to 99"),
        (FLAT, {"scored": 9, "fallback": 1}, 0, "clients saw {'fallback': 1}"),
        (FLAT, {}, 0, "nothing was answered"),
        (FLAT, {"scored": 9}, 2, "2 acknowledged records are missing in Redis"),
    ],
)
def test_whatever_should_not_be_fails_the_soak(
    found: dict[str, Growth], outcomes: dict[str, int], missing: int, complaint: str
) -> None:
    """Each has a complaint of its own, and a good run has none."""
    assert [complaint] == verdict(found, outcomes, missing)
    assert [] == verdict(FLAT, {"scored": 9}, 0)
