"""Matching records are erased from the spool; others stay, and a running gateway loses no record it has to send."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.journal.claim import Claim
from gateway.journal.erase import Erased, erase, spool_records
from gateway.journal.record import CompletionRecord, Record, encode
from gateway.journal.spool import MAGIC, SegmentWriter, SpoolReader, pack
from tests.distill.dataset.records import race

ALICE, BOB = "a" * 16, "b" * 16


def alices(record: Record) -> bool:
    return record.key_id == ALICE


def write(claim: Claim, *keys: str, segment_bytes: int = 1 << 20) -> None:
    """Write a record of each caller, in this order."""
    writer = SegmentWriter(claim.folder, sync=None, segment_bytes=segment_bytes)
    for number, key in enumerate(keys):
        record = race(f"chatcmpl-{number}", prompt=f"from {key[0]}", key_id=key)
        writer.write(pack(record.id.encode(), encode(record)))
    writer.close()


def ship(claim: Claim, count: int) -> None:
    """Acknowledge the first records."""
    tail = SpoolReader(claim.folder)
    tail.advance(tail.read(max_records=count, max_bytes=1 << 20, end=None))
    tail.acknowledge()


def to_send(claim: Claim) -> list[str]:
    """Return the ids that a gateway still sends from a folder."""
    return [
        frame.record_id.decode()
        for frame in SpoolReader(claim.folder).read(max_records=99, max_bytes=1 << 30, end=None)
    ]


def text(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.seg")))


def ids(spool: Path) -> list[str]:
    return [record.id for record in spool_records(spool) if isinstance(record, CompletionRecord)]


@pytest.mark.parametrize(
    ("shipped", "expected"),
    [(1, Erased(0, 1)), (2, Erased(1, 0)), (3, Erased(1, 0))],
    ids=["before it is in Redis", "as soon as it is", "after others"],
)
def test_a_running_gateways_record_is_erased_once_redis_has_it(tmp_path: Path, shipped: int, expected: Erased) -> None:
    """With the cursor just before, at and after the record; records still to be sent are unchanged."""
    claim = Claim.new(tmp_path)
    write(claim, BOB, ALICE, BOB, BOB)
    ship(claim, shipped)
    before = to_send(claim)
    assert expected == erase(tmp_path, alices)
    assert before == to_send(claim)
    assert (expected.waiting == 1) == (b"from a" in text(tmp_path))
    assert Erased(0, expected.waiting) == erase(tmp_path, alices), "it was erased before"


def test_records_after_an_erased_one_are_read_even_without_the_cursor(tmp_path: Path) -> None:
    claim = Claim.new(tmp_path)
    write(claim, ALICE, BOB)
    ship(claim, 2)
    erase(tmp_path, alices)
    (claim.folder / "cursor").unlink()
    assert ["chatcmpl-0", "chatcmpl-1"] == to_send(claim)
    assert ["chatcmpl-1"] == ids(tmp_path)


@pytest.mark.parametrize("segment_bytes", [1, 1 << 20], ids=["a segment each", "one segment"])
def test_a_dead_gateways_records_are_erased_and_the_others_sent_later(tmp_path: Path, segment_bytes: int) -> None:
    claim = Claim.new(tmp_path)
    write(claim, BOB, ALICE, BOB, ALICE, BOB, segment_bytes=segment_bytes)
    ship(claim, 1)
    claim.release()
    assert Erased(2, 0) == erase(tmp_path, alices)
    assert b"from a" not in text(tmp_path)
    assert ["chatcmpl-2", "chatcmpl-4"] == to_send(claim) == ids(tmp_path)
    assert Erased(0, 0) == erase(tmp_path, alices)


def test_a_second_call_erases_what_a_killed_one_left(tmp_path: Path) -> None:
    """Killed before the new segment has its name, it leaves a draft with the text; killed later, old segments."""
    claim = Claim.new(tmp_path)
    write(claim, ALICE, BOB)
    claim.release()
    for draft in (".00000002.seg.0123456789abcdef", "erasing"):  # this release's, earlier releases'
        (claim.folder / draft).write_bytes(MAGIC + b"from a")
    assert Erased(1, 0) == erase(tmp_path, alices)
    assert ["lock", "00000002.seg"] == sorted((path.name for path in claim.folder.iterdir()), reverse=True)


def test_a_folder_without_matching_records_is_unchanged(tmp_path: Path) -> None:
    claim = Claim.new(tmp_path)
    write(claim, BOB, BOB)
    claim.release()
    before = {path: path.read_bytes() for path in claim.folder.iterdir()}
    assert Erased(0, 0) == erase(tmp_path, alices)
    assert before == {path: path.read_bytes() for path in claim.folder.iterdir()}
    assert Erased(0, 0) == erase(tmp_path / "absent", alices)
