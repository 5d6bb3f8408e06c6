"""A draw is overdue after twice the time in which nineteen of twenty such draws finish."""

from __future__ import annotations

import pytest

from gateway.backend.usual_time import _LEAST_S, _LEAST_SAMPLES, COLD_S, UsualTime


def learn(usual: UsualTime, max_tokens: int | None, seconds: float, tokens: int, draws: int = _LEAST_SAMPLES) -> None:
    for _ in range(draws):
        usual.add(max_tokens, seconds, tokens)


def test_too_few_samples_are_ignored() -> None:
    usual = UsualTime()
    learn(usual, 64, 1.0, 64, _LEAST_SAMPLES - 1)
    assert COLD_S == usual.overdue_s(64)
    usual.add(64, 1.0, 64)
    assert 2.0 == usual.overdue_s(64)


def test_long_draws_are_judged_by_long_ones() -> None:
    usual = UsualTime()
    learn(usual, 16, 1.0, 16)
    learn(usual, 4000, 60.0, 4000)
    assert (2.0, 120.0) == (usual.overdue_s(16), usual.overdue_s(4000))


def test_draws_of_an_unknown_length_are_judged_by_the_time_per_token() -> None:
    usual = UsualTime()
    learn(usual, 100, 1.0, 100)
    assert pytest.approx(2 * 1000 * 0.01) == usual.overdue_s(1000)
    assert COLD_S == usual.overdue_s(None)


def test_the_slowest_of_twenty_is_ignored() -> None:
    usual = UsualTime()
    learn(usual, 16, 1.0, 16, 190)
    learn(usual, 16, 50.0, 16, 2)
    assert 2.0 == usual.overdue_s(16)


def test_a_draw_is_never_overdue_within_half_a_second() -> None:
    usual = UsualTime()
    learn(usual, 16, 0.001, 16)
    assert _LEAST_S == usual.overdue_s(16)


def test_old_samples_are_forgotten() -> None:
    usual = UsualTime()
    learn(usual, 16, 10.0, 16)
    learn(usual, 16, 1.0, 16, 400)
    assert 2.0 == usual.overdue_s(16)
