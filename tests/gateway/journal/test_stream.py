"""Places in the journal's stream: before what came after a moment, and in their order as numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.journal.stream import START, entry_id_at, entry_order

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("milliseconds", "place"), [(-5.0, "0-0"), (0.0, "0-0"), (1.0, "1-0"), (1234.9, "1234-0"), (1e12, f"{10**12}-0")]
)
def test_a_moments_place_is_its_millisecond(milliseconds: float, place: str) -> None:
    assert place == entry_id_at(EPOCH + timedelta(milliseconds=milliseconds))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("9-0", "10-0", "10-0"),
        ("10-0", "9-0", "10-0"),
        ("5-9", "5-10", "5-10"),
        (START, "0-1", "0-1"),
        ("7-1", "7-1", "7-1"),
    ],
)
def test_the_later_place_is_the_larger_number_not_the_longer_text(one: str, other: str, expected: str) -> None:
    assert expected == max(one, other, key=entry_order)
