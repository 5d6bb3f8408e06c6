"""The water level is the max-min fair division: no race can have more unless one that has less loses."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.water_level import WholeShares, merged, water_level

DEMANDS = st.dictionaries(st.integers(1, 16), st.floats(0.25, 300), max_size=6)


@pytest.mark.parametrize(
    ("capacity", "demand", "expected"),
    [
        (128, {4: 31}, math.inf),
        (128, {4: 32}, math.inf),  # all fit exactly
        (128, {4: 33}, 128 / 33),
        (128, {4: 64}, 2.0),
        (128, {4: 256}, 0.5),
        (10, {1: 4, 4: 2}, 3.0),  # four get what they want, two share the rest
        (10, {1: 12, 4: 2}, 10 / 14),
        (7, {}, math.inf),
        (0, {4: 1}, 0.0),
    ],
)
def test_the_level(capacity: float, demand: dict[int, float], expected: float) -> None:
    assert pytest.approx(expected) == water_level(capacity, demand)


@given(st.floats(0, 2000), DEMANDS)
def test_the_level_gives_out_the_whole_capacity_and_never_more(capacity: float, demand: dict[int, float]) -> None:
    level = water_level(capacity, demand)
    given_out = sum(races * min(want, level) for want, races in demand.items())
    wanted = sum(races * want for want, races in demand.items())
    assert pytest.approx(min(capacity, wanted), rel=1e-9, abs=1e-9) == given_out


@given(st.floats(1, 2000), DEMANDS, st.integers(1, 16))
def test_more_races_never_raise_the_level(capacity: float, demand: dict[int, float], want: int) -> None:
    more = merged(demand, {want: 1.0})
    assert water_level(capacity, more) <= water_level(capacity, demand) + 1e-9


@given(DEMANDS, DEMANDS)
def test_merging_loses_no_race(one: dict[int, float], other: dict[int, float]) -> None:
    assert pytest.approx(sum(one.values()) + sum(other.values())) == sum(merged(one, other).values())


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (1.0, {1: 100}),
        (1.24, {1: 100}),
        (1.25, {1: 75, 2: 25}),
        (1.5, {1: 50, 2: 50}),
        (1.74, {1: 26, 2: 74}),
        (1.75, {2: 100}),
        (2.24, {2: 100}),
        (2.25, {2: 75, 3: 25}),
        (0.5, {0: 50, 1: 50}),
    ],
)
def test_whole_shares_follow_the_level_on_average_and_are_constant_near_a_whole_number(
    level: float, expected: dict[int, int]
) -> None:
    shares = WholeShares()
    given_out = Counter(shares.least(level) + shares.one_more(level) for _ in range(100))
    assert expected.keys() == given_out.keys()
    assert all(abs(given_out[n] - count) <= 1 for n, count in expected.items())
