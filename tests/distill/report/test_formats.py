"""Numbers and texts are formatted for readers."""

from __future__ import annotations

from math import inf, nan

import pytest

from distill.report import formats


@pytest.mark.parametrize(
    ("expected", "seconds"),
    [
        ("2.1 s", 2.1),
        ("1 min 00 s", 59.96),
        ("23 min 53 s", 1433),
        ("1 h 00 min", 3599.7),
        ("1 h 52 min", 6720),
        ("n/a", nan),
    ],
)
def test_a_time_has_fitting_units(expected: str, seconds: float) -> None:
    assert expected == formats.seconds(seconds)


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        ("< 0.001", 0.0),
        ("0.0123", 0.01234),
        ("20", 20.0),
        ("1,234", 1234.4),
        ("> 1,000,000", 1e9),
        ("∞", inf),
        ("n/a", nan),
    ],
)
def test_evidence_keeps_three_figures(expected: str, value: float) -> None:
    assert expected == formats.wealth(value)


@pytest.mark.parametrize(("expected", "size"), [("512 B", 512), ("2.71 GB", 2_711_000_000), ("3.2 TB", 3.2e12)])
def test_a_size_has_its_unit(expected: str, size: float) -> None:
    assert expected == formats.size(size)


def test_a_negative_number_has_a_true_minus_sign() -> None:
    assert "−1,234.50" == formats.fixed(-1234.5)
    assert "−0.012" == formats.signed(-0.012)
    assert "+0.012" == formats.signed(0.012)
    assert "−16\u00a0%" == formats.change(0.84)
    assert "−1.8e+308" == formats.fixed(-1.797e308)
    assert "21\u00a0%" == formats.percent(0.21)


def test_a_value_that_is_not_finite_is_named() -> None:
    assert {"n/a"} == {
        formats.count(inf),
        formats.fixed(None),
        formats.fixed(nan),
        formats.signed(nan),
        formats.percent(None),
        formats.change(nan),
    }


def test_a_sentence_begins_large_and_ends() -> None:
    assert "Not enough evidence." == formats.sentence("not enough evidence")
    assert "Why?" == formats.sentence("why?")
    assert "." == formats.sentence("")


def test_control_characters_become_pictures() -> None:
    assert "a␀b␛c\n\td␡\ne␍�" == formats.visible("a\x00b\x1bc\n\td\x7f\r\ne\r\x85")
