"""Selection: the highest reward wins, ties break by index, and an answer that was not compared is flagged."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.selection import most_informative_error, select
from gateway.errors import (
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    RequestContained,
)
from gateway.types import Answer, Candidate, Selection, Unusable


def candidate(
    index: int, reward: float | None, *, finished: bool = True, unusable: Unusable | None = None
) -> Candidate:
    answer = Answer(text=f"answer {index}", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
    return Candidate(index, seed=index, answer=answer if finished else None, reward=reward, unusable=unusable)


def selected(*rewards: float | None, n: int = 1) -> tuple[list[int], Selection]:
    winners, selection = select([candidate(i, reward) for i, reward in enumerate(rewards)], n)
    return [winner.index for winner in winners], selection


def test_the_highest_reward_wins() -> None:
    assert selected(0.1, 2.0, -3.0) == ([1], Selection.SCORED)


def test_a_tie_goes_to_the_lower_index() -> None:
    assert selected(1.0, 2.0, 2.0) == ([1], Selection.SCORED)


def test_n_answers_are_returned_in_order_of_reward_and_unscored_ones_last() -> None:
    assert selected(0.5, None, 2.0, 1.0, n=4) == ([2, 3, 0, 1], Selection.SCORED)


def test_one_answer_is_a_single_with_any_reward() -> None:
    winners, selection = select([candidate(0, None, finished=False), candidate(1, 5.0)], 1)
    assert ([winner.index for winner in winners], selection) == ([1], Selection.SINGLE)


@pytest.mark.parametrize("rewards", [(None, None, None), (None, 9.0, None)])
def test_without_two_rewards_the_first_answer_is_taken_and_flagged(rewards: tuple[float | None, ...]) -> None:
    assert selected(*rewards) == ([0], Selection.FALLBACK)


CUT, BROKEN = Unusable.CUT, Unusable.SCHEMA


@pytest.mark.parametrize(
    ("draws", "n", "winners", "selection"),
    [
        ([(9.0, BROKEN), (1.0, None)], 1, [1], Selection.SINGLE),
        ([(9.0, CUT), (1.0, None)], 1, [1], Selection.SINGLE),
        ([(9.0, BROKEN), (1.0, CUT)], 1, [1], Selection.SINGLE),
        ([(9.0, BROKEN), (1.0, None), (2.0, None)], 1, [2], Selection.SCORED),
        ([(9.0, BROKEN), (1.0, None), (2.0, None)], 3, [2, 1], Selection.SCORED),
        ([(9.0, BROKEN), (1.0, None), (None, None)], 2, [1, 2], Selection.FALLBACK),
        ([(None, Unusable.EMPTY), (-5.0, None)], 2, [1], Selection.SINGLE),
        ([(1.0, CUT), (2.0, CUT), (9.0, BROKEN)], 3, [1, 0], Selection.SCORED),
        ([(1.0, BROKEN), (2.0, Unusable.FILTERED)], 2, [1, 0], Selection.SCORED),
    ],
)
def test_only_the_most_usable_answers_compete(
    draws: list[tuple[float | None, Unusable | None]], n: int, winners: list[int], selection: Selection
) -> None:
    candidates = [candidate(i, reward, unusable=unusable) for i, (reward, unusable) in enumerate(draws)]
    found, why = select(candidates, n)
    assert (winners, selection) == ([winner.index for winner in found], why)


@pytest.mark.parametrize("reason", Unusable)
def test_an_unusable_answer_never_beats_a_usable_one(reason: Unusable) -> None:
    [winner], _ = select([candidate(0, 9.0, unusable=reason), candidate(1, None)], 1)
    assert 1 == winner.index


@pytest.mark.parametrize(("rewards", "selection"), [(1, Selection.FALLBACK), (2, Selection.SCORED)])
def test_two_rewards_are_needed_to_compare(rewards: int, selection: Selection) -> None:
    assert selection == selected(*[1.0] * rewards, *[None] * 3)[1]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=8))
def test_the_winner_is_the_maximum(rewards: list[float]) -> None:
    [winner], selection = selected(*rewards)
    assert selection is Selection.SCORED
    assert winner == rewards.index(max(rewards))


def test_the_most_informative_error_is_the_callers_own_fault_then_overload_then_time() -> None:
    ordered: list[GatewayError] = [
        InvalidRequest("no such thing"),
        BackendRejected("too long"),
        RequestContained("it broke servers"),
        BackendOverloaded("full"),
        BackendTimeout("slow"),
        BackendFailed("broken"),
        BackendProtocolError("unreadable"),
        BackendUnreachable("gone"),
        DeadlineExceeded("late"),
    ]
    for better, worse in itertools.combinations(ordered, 2):
        candidates = [Candidate(0, 0, error=worse), Candidate(1, 1, error=better)]
        assert most_informative_error(candidates) is better


def test_a_race_without_any_error_ran_out_of_time() -> None:
    assert isinstance(most_informative_error([Candidate(0, 0)]), DeadlineExceeded)
