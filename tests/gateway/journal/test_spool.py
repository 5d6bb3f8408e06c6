"""The spool's files: durable records are read back, torn ones are cut."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway.journal.spool import MAGIC, Frame, Position, SegmentWriter, SpoolReader, pack, segments

Pairs = list[tuple[bytes, bytes]]


def write(folder: Path, pairs: Pairs, *, segment_bytes: int = 10_000) -> Position:
    writer = SegmentWriter(folder, sync=None, segment_bytes=segment_bytes)
    for record_id, data in pairs:
        end = writer.write(pack(record_id, data))
    writer.close()
    return end


def read_all(
    reader: SpoolReader, *, end: Position | None = None, max_records: int = 3, max_bytes: int = 10_000
) -> Pairs:
    pairs: Pairs = []
    while frames := reader.read(max_records=max_records, max_bytes=max_bytes, end=end):
        reader.advance(frames)
        pairs.extend((frame.record_id, frame.data) for frame in frames)
    return pairs


def cuts(logs: list[EventDict]) -> list[int]:
    """Return the bytes of each cut in the log."""
    return [line["cut_bytes"] for line in logs if line["event"] == "spool_cut"]


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Limit the size of files; the kernel then writes what fits and refuses the rest, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@given(
    pairs=st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=80)), min_size=1, max_size=20),
    segment_bytes=st.integers(10, 400),
    max_records=st.integers(1, 5),
    max_bytes=st.integers(1, 200),
)
def test_frames_of_any_size_are_read_in_order(
    tmp_path_factory: pytest.TempPathFactory, pairs: Pairs, segment_bytes: int, max_records: int, max_bytes: int
) -> None:
    """Also with segments and batches of any size; ``measure`` counts the same."""
    folder = tmp_path_factory.mktemp("spool")
    end = write(folder, pairs, segment_bytes=segment_bytes)
    assert (len(pairs), sum(len(pack(*pair)) for pair in pairs)) == SpoolReader(folder).measure()
    assert pairs == read_all(SpoolReader(folder), max_records=max_records, max_bytes=max_bytes)
    assert pairs == read_all(SpoolReader(folder), end=end, max_records=max_records, max_bytes=max_bytes)


def test_a_torn_last_frame_is_cut(tmp_path: Path) -> None:
    """A crash at any of its bytes leaves all frames before it."""
    kept, torn = [(b"a", b"first"), (b"b", b"second")], pack(b"c", b"third")
    for length in range(len(torn)):
        folder = tmp_path / str(length)
        folder.mkdir()
        write(folder, kept)
        with (folder / "00000001.seg").open("ab") as file:
            file.write(torn[:length])
        with capture_logs() as logs:
            assert kept == read_all(SpoolReader(folder))
        assert ([length] if length else []) == cuts(logs)


@pytest.mark.parametrize("at", range(len(pack(b"b", b"second"))))
def test_a_damaged_frame_is_never_read_as_a_record(tmp_path: Path, at: int) -> None:
    """Damage at any byte makes it invalid, and the segment ends before it."""
    write(tmp_path, [(b"a", b"first"), (b"b", b"second")])
    path = tmp_path / "00000001.seg"
    content = bytearray(path.read_bytes())
    content[len(content) - len(pack(b"b", b"second")) + at] ^= 0x40
    path.write_bytes(content)
    assert [(b"a", b"first")] == read_all(SpoolReader(tmp_path))


def test_unwritten_blocks_are_cut(tmp_path: Path) -> None:
    """Zeros, as a power cut can leave them, are not a frame."""
    write(tmp_path, [(b"a", b"first")])
    with (tmp_path / "00000001.seg").open("ab") as file:
        file.write(bytes(4096))
    with capture_logs() as logs:
        assert [(b"a", b"first")] == read_all(SpoolReader(tmp_path))
    assert [4096] == cuts(logs)


@pytest.mark.parametrize("content", [b"", MAGIC[:3], MAGIC, b"something else entirely"])
def test_a_segment_without_frames_is_skipped(tmp_path: Path, content: bytes) -> None:
    """A crash just after a segment was made, or a foreign file."""
    write(tmp_path, [(b"a", b"1")])
    (tmp_path / "00000002.seg").write_bytes(content)
    write_later = SegmentWriter(tmp_path / "later", sync=None)
    (tmp_path / "later").mkdir()
    write_later.write(pack(b"b", b"2"))
    write_later.close()
    (tmp_path / "later" / "00000001.seg").rename(tmp_path / "00000003.seg")
    assert [(b"a", b"1"), (b"b", b"2")] == read_all(SpoolReader(tmp_path))


def test_a_reader_stops_where_the_frames_are_durable(tmp_path: Path) -> None:
    """Frames after ``end`` are not read yet, in its segment or a later one."""
    writer = SegmentWriter(tmp_path, sync=None, segment_bytes=20)
    end = writer.write(pack(b"a", b"1"))
    writer.write(pack(b"b", b"2"))
    assert [(b"a", b"1")] == read_all(SpoolReader(tmp_path), end=end)
    assert [] == read_all(SpoolReader(tmp_path), end=Position(0, 0))


def test_acknowledged_frames_are_not_read_again_and_their_segments_are_deleted(tmp_path: Path) -> None:
    """The cursor outlives the process."""
    write(tmp_path, [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")], segment_bytes=20)
    assert [1, 2, 3] == segments(tmp_path)
    reader = SpoolReader(tmp_path)
    reader.advance(reader.read(max_records=2, max_bytes=1_000, end=None))
    reader.acknowledge()
    assert [2, 3] == segments(tmp_path)
    assert [(b"c", b"3")] == read_all(SpoolReader(tmp_path))


def test_unacknowledged_frames_are_read_again(tmp_path: Path) -> None:
    """By the same reader after a rewind, by another one at once."""
    write(tmp_path, [(b"a", b"1"), (b"b", b"2")])
    reader = SpoolReader(tmp_path)
    assert 2 == len(read_all(reader))
    assert [] == reader.read(max_records=1, max_bytes=1, end=None)
    reader.rewind()
    assert 2 == len(read_all(reader))
    assert 2 == len(read_all(SpoolReader(tmp_path)))


def test_with_a_torn_cursor_reading_starts_at_the_beginning(tmp_path: Path) -> None:
    """Records may then be read twice; none is lost."""
    write(tmp_path, [(b"a", b"1")])
    reader = SpoolReader(tmp_path)
    read_all(reader)
    reader.acknowledge()
    (tmp_path / "cursor").write_bytes(b"")
    assert [(b"a", b"1")] == read_all(SpoolReader(tmp_path))


def test_a_full_disk_refuses_whole_groups_and_keeps_earlier_frames(tmp_path: Path) -> None:
    """The part that fitted is removed; with room again, writing goes on in the same segment."""
    writer = SegmentWriter(tmp_path, sync=os.fdatasync)
    writer.write(pack(b"a", b"x" * 500))
    with largest_file(1_000), pytest.raises(OSError, match="File too large"):
        writer.write(pack(b"b", b"y" * 1_000))
    writer.write(pack(b"c", b"z"))
    writer.close()
    with capture_logs() as logs:
        assert [b"a", b"c"] == [record_id for record_id, _ in read_all(SpoolReader(tmp_path))]
    assert ([], [1]) == (cuts(logs), segments(tmp_path))


def test_a_disk_without_room_for_a_new_segment_has_none_afterwards(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, sync=None)
    with largest_file(3), pytest.raises(OSError, match="File too large"):
        writer.write(pack(b"a", b"1"))
    assert [] == segments(tmp_path)
    assert Position(1, len(MAGIC) + len(pack(b"a", b"1"))) == writer.write(pack(b"a", b"1"))


def test_after_a_failed_fsync_the_file_is_not_written_again(tmp_path: Path) -> None:
    """The refused frame is removed, and the next one starts a new segment."""
    broken = True

    def sync(fd: int) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error")
        os.fdatasync(fd)

    writer = SegmentWriter(tmp_path, sync=sync)
    with pytest.raises(OSError, match="Input/output error"):
        writer.write(pack(b"a", b"1"))
    broken = False
    writer.write(pack(b"b", b"2"))
    assert [(b"b", b"2")] == read_all(SpoolReader(tmp_path))
    assert [1, 2] == segments(tmp_path)


def test_a_torn_frame_that_cannot_be_removed_ends_its_segment(tmp_path: Path) -> None:
    """Readers would not find a frame after it."""
    writer = SegmentWriter(tmp_path, sync=None)
    writer.write(pack(b"a", b"1"))
    assert writer._fd is not None
    os.close(writer._fd)
    writer._fd = os.open(tmp_path / "00000001.seg", os.O_RDONLY)  # can be neither written nor cut
    with pytest.raises(OSError, match="Bad file descriptor"):
        writer.write(pack(b"b", b"2"))
    writer.write(pack(b"c", b"3"))
    assert [(b"a", b"1"), (b"c", b"3")] == read_all(SpoolReader(tmp_path))


def test_a_cursor_that_cannot_be_saved_is_an_error_and_leaves_no_draft(tmp_path: Path) -> None:
    """The caller logs it: records may be sent twice after a crash."""
    write(tmp_path, [(b"a", b"1")])
    reader = SpoolReader(tmp_path)
    read_all(reader)
    with largest_file(0), pytest.raises(OSError, match="File too large"):
        reader.acknowledge()
    assert ["00000001.seg"] == [path.name for path in tmp_path.iterdir()]


def test_the_size_of_a_frame_is_its_size_on_disk() -> None:
    assert len(pack(b"id", b"data")) == Frame(b"id", b"data", Position(1, 0)).n_bytes
