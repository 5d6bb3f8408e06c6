"""The archive: its contents, its readers, and its errors."""

from __future__ import annotations

import json
import resource
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import datasets
import duckdb
import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.dataset.archive import Archive
from distill.dataset.archive_writer import CLOCK_WRONG, Added, writing
from distill.errors import DataError, NightError
from gateway.journal.record import Record, encode
from tests.distill.dataset.records import DAY_MS, NOON, candidate, race, races, rated, user


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "archive")


def add(archive: Archive, records: Sequence[Record | bytes], **options: int) -> Added:
    with writing(archive, **options) as writer:
        return writer.add([record if isinstance(record, bytes) else encode(record) for record in records])


SPOILED = (
    st.integers() | st.floats() | st.text(max_size=5) | st.none() | st.booleans() | st.lists(st.integers(), max_size=2)
)


@given(
    names=st.sets(st.sampled_from(sorted(orjson.loads(encode(race())))), max_size=3),
    value=SPOILED,
    junk=st.binary(max_size=20),
)
def test_every_entry_becomes_a_row_or_goes_to_the_quarantine(names: set[str], value: object, junk: bytes) -> None:
    """A bad record and junk never prevent the row of a good record in the same batch, and none of them is lost."""
    spoiled = orjson.loads(encode(race("chatcmpl-0"))) | dict.fromkeys(names - {"id"}, value)
    payloads = [json.dumps(spoiled).encode(), junk, encode(race("chatcmpl-1"))]
    with tempfile.TemporaryDirectory() as folder:
        added = add(Archive(Path(folder) / "archive"), payloads)
    assert len(payloads) == added.completions + added.feedback + len(added.unreadable)
    assert added.completions >= 1


def test_records_are_read_as_they_were_written(archive: Archive) -> None:
    """Every field of every record is read back, for any day."""
    records = [race("chatcmpl-0", metadata={"ü": [1, None]}, user="me"), race("chatcmpl-1", time_ms=NOON + DAY_MS)]
    feedback = rated("chatcmpl-0", -1.0)

    assert Added(2, 1, 0, ()) == add(archive, [*records, feedback])

    assert records == list(archive.completions())
    assert [feedback] == list(archive.feedback())
    assert 3 == archive.count()
    assert ["day=2025-11-22", "day=2025-11-23"] == [path.parent.name for path in archive.parts()]


def test_an_absent_folder_is_an_empty_archive(archive: Archive) -> None:
    assert [] == list(archive.completions())
    assert 0 == archive.count()


def test_a_repeated_id_has_one_row(archive: Archive) -> None:
    """In one batch, in a later one, and from a later writer."""
    records = races(6, days=2)
    with writing(archive) as writer:
        assert Added(6, 0, 6, ()) == writer.add([encode(record) for record in [*records, *records]])
        assert Added(0, 0, 6, ()) == writer.add([encode(record) for record in records])
    assert Added(1, 0, 6, ()) == add(archive, [*records, race("new")])
    assert 7 == archive.count()


def test_a_copy_of_an_old_record_is_found_as_a_duplicate(archive: Archive) -> None:
    """Ids of a few days are kept in memory; for other days the files are read again."""
    records = races(10, days=10)
    with writing(archive) as writer:
        for record in [*records, *records]:
            writer.add([encode(record)])
    assert 10 == archive.count()


def test_parts_are_filled_and_full_ones_are_not_rewritten(archive: Archive) -> None:
    """Small batches share a part until it is full; no day gets a file for each batch."""
    for record in races(20):
        add(archive, [record], part_bytes=20_000)
    first, *others = archive.parts()
    assert 1 <= len(others) < 10
    assert "part-00000.parquet" == first.name
    before = first.stat().st_mtime_ns
    add(archive, [race("another")], part_bytes=20_000)
    assert before == first.stat().st_mtime_ns
    assert [f"chatcmpl-{n}" for n in range(20)] + ["another"] == [record.id for record in archive.completions()]


def test_pandas_duckdb_and_datasets_read_it(archive: Archive, tmp_path: Path) -> None:
    """Each opens the folder with its usual function and finds typed columns."""
    winner = candidate(1, 2.0, text="because of scattering")
    add(archive, [race("a", candidates=[candidate(0, 1.0), winner]), rated("a", -1.0), *races(3, days=2)])
    (archive.folder / "_quarantine").mkdir()
    (archive.folder / "_quarantine" / "x.json").write_bytes(b"{")

    frame = pd.read_parquet(archive.folder)
    row = frame[frame["id"] == "a"].iloc[0]
    assert "because of scattering" == row["winner"]
    assert [1.0, 2.0] == list(row["rewards"])
    assert ("rft-1", "stable", 4, "scored") == (row["adapter"], row["arm"], row["policy_version"], row["selection"])
    assert pd.Timestamp(NOON, unit="ms", tz="UTC") == row["time"]
    assert "2025-11-22" == row["day"]

    glob = f"{archive.folder}/**/*.parquet"
    found = duckdb.sql(
        f"select day::varchar, winner_reward, candidates[2].text, record->>'$.model' "
        f"from read_parquet('{glob}', hive_partitioning=true) where id = 'a'"
    ).fetchall()
    assert [("2025-11-22", 2.0, "because of scattering", "ratchet")] == found

    rows = datasets.load_dataset("parquet", data_files=glob, split="train", cache_dir=str(tmp_path / "cache"))
    assert 5 == len(rows)
    assert ["a"] == [row["id"] for row in rows if row["winner"] == "because of scattering"]
    assert [-1.0] == [row["rating"] for row in rows if row["kind"] == "feedback"]


def test_files_are_zstd_and_carry_their_schema_version(archive: Archive) -> None:
    add(archive, [race()])
    part = pq.ParquetFile(archive.parts()[0])
    assert b"1" == part.schema_arrow.metadata[b"ratchet.archive_schema"]
    assert "ZSTD" == part.metadata.row_group(0).column(0).compression


def test_a_record_without_content_has_a_row_too(archive: Archive) -> None:
    """``store: false`` leaves counts and rewards; message parts other than text are only in the JSON."""
    bare = race("bare", store=False, messages=None, winners=[])
    parts = race("parts", messages=[{"role": "user", "content": [{"type": "text", "text": "look"}]}])
    add(archive, [bare, parts])
    assert [bare, parts] == list(archive.completions())


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"not json",
        b'{"kind": "completion"}',
        encode(race("bad", time_ms=10**17)),
        encode(race("bad", policy_version=2**63)),
        encode(race("bad", prompt="x")).replace(b'"x"', b'"\\ud800"'),
    ],
    ids=["empty", "no JSON", "no fields", "no such year", "too large a number", "half a character"],
)
def test_an_unreadable_record_is_kept_unchanged(archive: Archive, bad: bytes) -> None:
    """It stops nothing, and a copy of it makes no second file."""
    for n in range(2):
        added = add(archive, [bad, race(f"chatcmpl-{n}")])
        assert 1 == added.completions
        (path,) = added.unreadable
        assert bad == path.read_bytes()
    assert 1 == len(list((archive.folder / "_quarantine").iterdir()))
    assert 2 == archive.count()


@pytest.mark.parametrize("damage", ["cut", "emptied", "nonsense", "renamed"])
def test_a_damaged_part_is_named_and_never_skipped(archive: Archive, damage: str) -> None:
    """Reading, counting and writing name the file and the remedy; without the file all of them work again."""
    add(archive, [*races(50), rated("chatcmpl-1", 1.0)])
    path = archive.parts()[0]
    content = path.read_bytes()
    broken = {
        "cut": content[: len(content) // 2],
        "emptied": b"",
        "nonsense": b"PAR1" * 100,
        "renamed": content.replace(b"record", b"rekord"),
    }
    path.write_bytes(broken[damage])

    def read_all() -> None:
        archive.count()
        with writing(archive) as writer:
            writer.add([encode(race("new"))])
        list(archive.completions())

    with pytest.raises(DataError, match=f"{path} cannot be read .*restore it.*move it out.*distill collect"):
        read_all()
    path.rename(path.parent.parent / "aside")
    read_all()


def test_a_flipped_bit_in_the_text_is_noticed(archive: Archive) -> None:
    """Pages carry checksums: a decoder alone would not see every flipped bit."""
    add(archive, races(50))
    path = archive.parts()[0]
    group = pq.ParquetFile(path).metadata.row_group(0)
    column = group.column(group.num_columns - 1)
    assert "record" == column.path_in_schema
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        list(archive.completions())


def test_parts_of_newer_versions_and_foreign_files_are_refused(archive: Archive) -> None:
    add(archive, [race()])
    path = archive.parts()[0]
    rows = pq.read_table(path)
    pq.write_table(rows.replace_schema_metadata({"ratchet.archive_schema": "2"}), path)
    with pytest.raises(DataError, match="written by a newer version"):
        list(archive.completions())
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match="not a part of a journal archive"):
        list(archive.completions())


def test_a_row_that_holds_no_record_is_an_error(archive: Archive) -> None:
    add(archive, [race()])
    path = archive.parts()[0]
    rows = pq.read_table(path, partitioning=None)
    column = pa.array(["{}"])
    pq.write_table(rows.set_column(rows.schema.get_field_index("record"), "record", column), path)
    with pytest.raises(DataError, match="holds a row that is not a record"):
        list(archive.completions())


def test_one_writer_at_a_time(archive: Archive) -> None:
    with (
        writing(archive),
        pytest.raises(NightError, match="another process is writing"),
        writing(Archive(archive.folder)),
    ):
        pass
    with writing(archive):
        pass


def test_temporary_files_of_a_killed_writer_are_removed(archive: Archive) -> None:
    add(archive, [race(), b"bad"])
    leftovers = [archive.parts()[0].parent / ".part-00000.parquet.k1", archive.folder / "_quarantine" / ".x.json.k2"]
    for path in leftovers:
        path.write_bytes(b"half")
    assert [race()] == list(archive.completions())
    with writing(archive):
        assert [] == [path for path in leftovers if path.exists()]


def test_the_archive_has_a_name_of_its_own(archive: Archive, tmp_path: Path) -> None:
    with writing(archive) as writer:
        name = writer.identity()
    with writing(archive) as writer:
        assert name == writer.identity()
    with writing(Archive(tmp_path / "other")) as writer:
        assert name != writer.identity()


def test_a_full_disk_is_an_error_that_does_not_change_the_archive(archive: Archive) -> None:
    """The system refuses to write more bytes to any file."""
    add(archive, [race("before")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(DataError, match=r"cannot be written.*free space and run"):
            add(archive, [replace(race("after"), messages=user("".join(map(chr, range(200, 40_000)))))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ["before"] == [record.id for record in archive.completions()]
    assert [] == list(archive.folder.glob("day=*/.part*"))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(DataError, match=r"cannot be written.*fix this"),
        writing(Archive(tmp_path / "file" / "archive")),
    ):
        pass


@pytest.mark.parametrize(
    ("apart", "kept"),
    [
        (timedelta(0), False),
        (CLOCK_WRONG, False),
        (CLOCK_WRONG + timedelta(milliseconds=1), True),
        (-CLOCK_WRONG - timedelta(milliseconds=1), False),
    ],
)
def test_a_row_expires_by_its_own_time_unless_its_clock_was_wrong(apart: timedelta, kept: bool, tmp_path: Path) -> None:
    """It was collected over a week after its own time: its gateway's clock was late."""
    archive = Archive(tmp_path)
    with writing(archive) as writer:
        recorded = datetime.fromtimestamp(NOON / 1000, UTC)
        writer.add([encode(race())], recorded + apart)
        day_after = (recorded + timedelta(days=1)).date().isoformat()
        assert (0 if kept else 1) == writer.drop_before(day_after, "2026-11-28")
    assert kept == bool(archive.count())
