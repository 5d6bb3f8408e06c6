"""Tokens counted for a call, by its end: never fewer than were drawn, and none if none were."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from gateway.errors import (
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    InvalidRequest,
)
from gateway.metering import MOST_TOKENS_PER_S, Meter, Pace, tokens_at_most


@dataclass(slots=True)
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


def metered(
    error: BaseException | None,
    *,
    seconds: float = 0.5,
    counted: tuple[int | None, int] | None = None,
    at_least: int = 0,
    max_tokens: int | None = None,
    pace: Pace | None = None,
) -> tuple[int, int, bool]:
    """Return a meter's state after one call: tokens, prompt tokens, and whether an uncounted prompt is owed."""
    clock = Clock()
    meter = Meter(pace, clock=clock)
    with contextlib.suppress(BaseException), meter.call(max_tokens=max_tokens) as call:
        clock.now_s += seconds
        call.tokens = at_least
        if counted is not None:
            call.count(*counted)
        if error is not None:
            raise error
    return meter.tokens, meter.prompt_tokens, meter.prompt_is_uncounted


MOST = int(0.5 * MOST_TOKENS_PER_S)


@pytest.mark.parametrize("error", [None, asyncio.CancelledError(), BackendFailed(""), GeneratorExit()])
@pytest.mark.parametrize("max_tokens", [None, 1])
def test_a_count_is_added_however_the_call_ends(error: BaseException | None, max_tokens: int | None) -> None:
    assert (80, 5, False) == metered(error, counted=(5, 80), max_tokens=max_tokens)
    assert (80, 0, True) == metered(error, counted=(None, 80), max_tokens=max_tokens)


@pytest.mark.parametrize("error", [BackendOverloaded(""), BackendUnreachable("", was_sent=False)])
def test_a_server_that_has_begun_to_draw_is_paid_whatever_its_error(error: BaseException) -> None:
    assert (1, 0, True) == metered(error, counted=(None, 1))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncio.CancelledError(), (MOST, 0, True)),
        (BackendTimeout(""), (MOST, 0, True)),
        (BackendProtocolError(""), (MOST, 0, True)),
        (BackendUnreachable(""), (MOST, 0, True)),
        (BackendFailed(""), (MOST, 0, False)),  # an error instead of an answer: the prompt may not have been read
        (BackendRejected(""), (MOST, 0, False)),
        (BackendUnreachable("", was_sent=False), (0, 0, False)),
        (BackendOverloaded(""), (0, 0, False)),
        (InvalidRequest(""), (0, 0, False)),
    ],
)
def test_a_call_that_ends_without_a_count_is_paid_by_its_duration(
    error: BaseException, expected: tuple[int, int, bool]
) -> None:
    assert expected == metered(error)


@pytest.mark.parametrize(("max_tokens", "expected"), [(MOST - 1, MOST - 1), (MOST, MOST), (MOST + 1, MOST), (0, 0)])
def test_no_more_than_max_tokens_is_added_without_a_count(max_tokens: int, expected: int) -> None:
    assert (expected, 0, True) == metered(asyncio.CancelledError(), max_tokens=max_tokens)


@pytest.mark.parametrize(("at_least", "expected"), [(MOST - 1, MOST), (MOST, MOST), (MOST + 1, MOST + 1)])
def test_an_answer_that_cannot_be_read_is_counted_by_its_size(at_least: int, expected: int) -> None:
    assert (expected, 0, True) == metered(BackendProtocolError(""), at_least=at_least)


def test_an_answer_that_the_server_broke_off_owes_its_prompt_too() -> None:
    assert (MOST, 0, True) == metered(BackendFailed(""), at_least=1)


def test_a_stream_that_is_cut_before_its_first_piece_owes_its_prompt_only() -> None:
    assert (0, 0, True) == metered(asyncio.CancelledError(), counted=(None, 0))
    assert (0, 0, False) == metered(BackendRejected(""), counted=(None, 0))


@pytest.mark.parametrize(
    ("drawn", "seconds", "expected"),
    [
        ([], 1.0, 2_000),
        ([(15, 0.1)], 1.0, 2_000),  # too few tokens to learn from
        ([(16, 0.32)], 1.0, 100),
        ([(16, 0.32), (100, 10.0)], 1.0, 100),  # a slow call does not lower the speed
        ([(16, 0.32), (100, 1.0)], 1.0, 200),
        ([(100, 1.0)], 0.001, 1),
        ([(100, 1.0)], 0.0, 0),
        ([(100, 0.0001)], 1.0, 2_000),  # an answer from a cache
        ([(100, 0.0)], 1.0, 2_000),
    ],
)
def test_the_fastest_call_bounds_what_another_may_have_drawn(
    drawn: list[tuple[int, float]], seconds: float, expected: int
) -> None:
    pace = Pace()
    for tokens, took_s in drawn:
        metered(None, counted=(5, tokens), seconds=took_s, pace=pace)
    assert expected == pace.most_tokens(seconds)


def test_the_pace_learns_only_from_calls_that_succeeded() -> None:
    pace = Pace()
    metered(asyncio.CancelledError(), counted=(5, 100), seconds=10.0, pace=pace)
    assert 2_000 == pace.most_tokens(1.0)


def test_a_meter_adds_up_calls_and_counts_the_prompt_once() -> None:
    meter = Meter()
    for counted in ((5, 10), (7, 20), (5, 30)):
        with meter.call(max_tokens=None) as call:
            call.count(*counted)
    assert (60, 7, False) == (meter.tokens, meter.prompt_tokens, meter.prompt_is_uncounted)


@pytest.mark.parametrize(
    ("value", "expected"), [("", 0), ("ab", 2), ("é", 2), ("🐝", 4), (["é"], 6), ({"a": 1}, 7), ("\ud800", 1)]
)
def test_no_text_has_more_tokens_than_bytes(value: object, expected: int) -> None:
    assert expected == tokens_at_most(value)


def test_a_value_that_json_cannot_hold_is_still_counted() -> None:
    assert 1 <= tokens_at_most(["\ud800", 2**70])
