"""Scales stay inside their pixels, labels stay apart, ticks are round, and values that are not finite are not drawn."""

from __future__ import annotations

from itertools import pairwise
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.report.svg import Axis, Plot, apart, powers, responsive, ticks

LIMITED = st.floats(-1e9, 1e9)


@given(LIMITED, LIMITED, LIMITED)
def test_an_axis_never_leaves_its_pixels(low: float, high: float, value: float) -> None:
    axis = Axis(min(low, high), max(low, high), 40, 400)
    assert 40 <= axis(value) <= 400


@given(st.floats(1e-6, 1e6))
def test_a_log_axis_gives_equal_ratios_equal_room(value: float) -> None:
    axis = Axis(1e-7, 1e8, 0, 150, log=True)
    assert pytest.approx(10, abs=1e-6) == axis(value * 10) - axis(value)


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12).map(sorted))
def test_labels_are_moved_apart_and_stay_above_the_border(places: list[float]) -> None:
    moved = apart(places, 15, 200)
    assert all(later - earlier >= 15 - 1e-9 for earlier, later in pairwise(moved))
    assert max(moved) <= 200


def test_labels_with_room_stay_where_they_are() -> None:
    assert [10, 50, 90] == apart([10, 50, 90], 15, 200)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 10))
def test_ticks_are_few_and_inside(low: float, width: float, about: int) -> None:
    found = ticks(low, low + width, about)
    assert len(found) <= about + 1
    assert all(low - 1e-6 * width <= tick <= low + width + 1e-6 * width for tick in found)


def test_ticks_are_round_numbers() -> None:
    assert [0, 20, 40, 60, 80] == ticks(0, 91, 5)
    assert [-0.5, 0, 0.5, 1, 1.5] == ticks(-0.5, 1.7, 5)
    assert [3] == ticks(3, 3)


def test_powers_of_ten_thin_out() -> None:
    assert [0.01, 0.1, 1, 10] == powers(0.005, 50)
    assert [0.01, 1, 100, 10_000, 1_000_000] == pytest.approx(powers(1e-3, 1e6))


def test_a_line_has_a_gap_where_a_value_is_not_finite() -> None:
    plot = Plot((100, 100), (0, 3), (0, 1))
    plot.line([(0, 0), (1, 1), (2, nan), (3, 1)], "new")
    assert "M46.0 58.0L59.3 30.0M86.0 30.0" in plot.svg("wide", "a line")


def test_every_text_of_a_figure_is_escaped() -> None:
    plot = Plot((100, 100), (0, 1), (0, 1))
    plot.text((1, 1), "<b>&", "label")
    plot.dot((0, 0), "new", hint="<i>")
    figure = plot.svg("wide", '"><script>')
    assert "&lt;b&gt;&amp;" in figure
    assert "<title>&lt;i&gt;</title>" in figure
    assert "<script>" not in figure


def test_a_figure_is_drawn_for_a_desk_and_for_a_phone() -> None:
    sizes = []

    def draw(size: tuple[float, float], narrow: bool) -> Plot:
        sizes.append((size, narrow))
        return Plot(size, (0, 1), (0, 1))

    figure = responsive(draw, (900, 400), (300, 200), "two sizes")
    assert [((900, 400), False), ((300, 200), True)] == sizes
    assert 1 == figure.count('class="wide"')
    assert 1 == figure.count('class="narrow"')
