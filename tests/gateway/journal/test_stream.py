"""Entry ids of the journal's stream: by time, and ordered as numbers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.journal.stream import START, entry_id_at, entry_order

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("milliseconds", "entry_id"), [(-5.0, "0-0"), (0.0, "0-0"), (1.0, "1-0"), (1234.9, "1234-0"), (1e12, f"{10**12}-0")]
)
def test_the_entry_id_of_a_moment_is_its_millisecond(milliseconds: float, entry_id: str) -> None:
    assert entry_id == entry_id_at(EPOCH + timedelta(milliseconds=milliseconds))


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
def test_entry_ids_are_ordered_as_numbers_not_as_texts(one: str, other: str, expected: str) -> None:
    assert expected == max(one, other, key=entry_order)
