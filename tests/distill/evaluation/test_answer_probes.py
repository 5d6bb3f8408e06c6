"""Two fleets' answers to the probes: the same within the bounds, different beyond them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from distill.evaluation.answer_probes import LEAST_AGREEMENT, MOST_DISTANCE_NATS, distance_nats, same_answers

WORDS = [f"w{i}" for i in range(16)]


def replica(off_nats: float = 0.0, *, others: int = 0, seeded: bool = True) -> dict[str, Any]:
    """A replica with this difference of greedy log-probabilities and this number of different sampled answers."""
    sampled = [*WORDS[others:], *["other"] * others] if seeded else None
    return {"greedy": [[("a", {"a": -1.0 - off_nats, "b": -2.0 - off_nats})]], "sampled": sampled}


def ordered(others: int) -> list[str]:
    return [f"other {i}" if i < others else word for i, word in enumerate(WORDS)]


@pytest.mark.parametrize(
    ("off_nats", "alike"), [(0.0, True), (0.049, True), (0.051, False), (-0.049, True), (-0.051, False)]
)
def test_log_probabilities_may_differ_by_a_twentieth_of_a_nat(off_nats: float, alike: bool) -> None:
    assert pytest.approx(abs(off_nats)) == distance_nats(replica()["greedy"], replica(off_nats)["greedy"])
    assert alike == same_answers([replica()], [replica(off_nats)])
    assert 0.05 == MOST_DISTANCE_NATS


@pytest.mark.parametrize(("others", "alike"), [(3, True), (4, True), (5, False)])
def test_three_sampled_answers_of_four_must_be_the_same(others: int, alike: bool) -> None:
    other = {**replica(), "sampled": ordered(others)}
    assert alike == same_answers([replica()], [other])
    assert 0.75 == LEAST_AGREEMENT


def test_a_server_that_ignores_seeds_is_like_another_such_server_only() -> None:
    assert same_answers([replica(seeded=False)], [replica(seeded=False)])
    assert not same_answers([replica(seeded=False)], [replica()])
    assert not same_answers([replica()], [replica(seeded=False)])


def test_each_replica_must_be_like_one_of_the_other_fleet() -> None:
    one, other = replica(), replica(1.0)
    assert same_answers([one, one], [one])
    assert same_answers([one, other], [other, one, one])
    assert not same_answers([one, other], [one])
    assert not same_answers([one], [one, other])


A: dict[str, float] = {"a": -1.0, "b": -3.0}


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ([[("a", A)]], [[("a", A)]], 0.0),
        ([[("a", {"a": -1.0})]], [[("a", {"a": -3.0})]], 2.0),
        ([[("a", {"a": -1.0, "b": -1.0})]], [[("a", {"a": -3.0, "b": -1.0})]], math.sqrt(2)),
        # Not listed: as likely as the least likely listed one.
        ([[("a", {"a": -1.0, "b": -2.0})]], [[("a", {"a": -1.0})]], math.sqrt(0.5)),
        # Likely to neither: noise.
        ([[("a", {"a": -1.0, "c": -4.01})]], [[("a", {"a": -1.0, "c": -9.0})]], 0.0),
        ([[("a", {"a": -1.0, "c": -4.0})]], [[("a", {"a": -1.0, "c": -6.0})]], math.sqrt(2)),
        ([[("a", {"a": -1.0, "c": -6.0})]], [[("a", {"a": -1.0, "c": -4.0})]], math.sqrt(2)),
        # Below −12 all are the same.
        ([[("a", {"a": -1.0})]], [[("a", {"a": -40.0})]], 11.0),
        # Behind the first other token both continue other texts; the place where they part still counts.
        ([[("a", {"a": -1.0}), ("b", {"b": -1.0})]], [[("x", {"a": -3.0}), ("b", {"b": -9.0})]], 2.0),
        ([[("a", {"a": -1.0}), ("b", {"b": -1.0})]], [[("a", {"a": -1.0}), ("b", {"b": -3.0})]], math.sqrt(2)),
        ([[("a", {"a": -1.0})], [("a", {"a": -1.0})]], [[("a", {"a": -1.0})], [("a", {"a": -3.0})]], math.sqrt(2)),
        ([None], [None], 0.0),
        ([None, [("a", {"a": -1.0})]], [None, [("a", {"a": -3.0})]], 2.0),
        ([None], [[("a", A)]], math.inf),
        ([[("a", A)]], [None], math.inf),
        ([[]], [[("a", A)]], math.inf),
        ([[]], [[]], 0.0),
    ],
)
def test_the_distance_is_over_likely_tokens_at_shared_places(one: list[Any], other: list[Any], distance: float) -> None:
    assert pytest.approx(distance) == distance_nats(one, other)
