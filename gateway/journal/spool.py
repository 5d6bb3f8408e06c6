"""The spool's files: append-only segments of framed records, and a cursor that says how far Redis has taken them.

    <spool_dir>/worker-…/00000001.seg   MAGIC, then frames
                         cursor         "<segment> <offset>": everything before it is in Redis

A frame is a header (length, CRC-32, length of the id), the record's id and its bytes. A crash can tear only the tail
of a segment, and nothing after a torn frame was ever acknowledged to a caller: whatever does not check is cut there.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import structlog

from gateway.files import atomic_replace, sync_folder

MAGIC = b"RATCHET1"
SEGMENT_BYTES = 64 * 1024 * 1024

_HEADER = struct.Struct("<IIH")
_CURSOR = "cursor"

log = structlog.get_logger()


class Position(NamedTuple):
    """A place in a folder's segments; positions compare in the order of writing."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One record as it lies in the spool, and where the next one begins."""

    record_id: bytes
    data: bytes
    end: Position

    @property
    def n_bytes(self) -> int:
        """Its size on disk."""
        return _HEADER.size + len(self.record_id) + len(self.data)


def pack(record_id: bytes, data: bytes) -> bytes:
    """Frame one record."""
    payload = record_id + data
    return _HEADER.pack(len(payload), _checksum(payload, len(record_id)), len(record_id)) + payload


def _checksum(payload: bytes, id_length: int) -> int:
    # Seeded, so that a frame of zeros (blocks a power cut left unwritten) never checks.
    return zlib.crc32(payload, 0x5EED ^ id_length)


def segment_path(folder: Path, segment: int) -> Path:
    """The file of one segment."""
    return folder / f"{segment:08d}.seg"


def segments(folder: Path) -> list[int]:
    """Numbers of the folder's segments, in the order of writing."""
    return sorted(int(path.stem) for path in folder.glob("*.seg"))


class SegmentWriter:
    """Appends to a folder's segments. Used by one thread.

    Args:
        folder: Where the segments go; it must be new.
        sync: Makes a file's data durable (``os.fdatasync``); None leaves that to the kernel.
        segment_bytes: A segment that would grow beyond this is followed by a new one.
    """

    def __init__(self, folder: Path, *, sync: Callable[[int], None] | None, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._fd: int | None = None
        self._end = Position(0, 0)

    def write(self, frames: bytes) -> Position:
        """Append whole frames and make them durable, all or none.

        Returns:
            Where they end.

        Raises:
            OSError: The disk refused; nothing of ``frames`` remains, and the next call may succeed.
        """
        full = self._end.offset > len(MAGIC) and self._end.offset + len(frames) > self._segment_bytes
        if self._fd is None or full:
            self._fd = self._rotate()
        try:
            _write_all(self._fd, frames)
        except OSError:
            self._cut(self._fd)
            raise
        if self._sync is not None:
            try:
                self._sync(self._fd)
            except OSError:
                # After a failed fsync the kernel may have dropped the pages: this file can no longer be trusted.
                self._cut(self._fd)
                self.close()
                raise
        self._end = Position(self._end.segment, self._end.offset + len(frames))
        return self._end

    def close(self) -> None:
        """Close the segment; a later write begins a new one."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _rotate(self) -> int:
        self.close()
        segment = self._end.segment + 1
        path = segment_path(self._folder, segment)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        try:
            _write_all(fd, MAGIC)
            if self._sync is not None:
                sync_folder(self._folder)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        self._end = Position(segment, len(MAGIC))
        return fd

    def _cut(self, fd: int) -> None:
        try:
            os.ftruncate(fd, self._end.offset)
        except OSError:
            # What is torn there stays, and readers cut it; but nothing may follow it.
            self.close()


class Tail:
    """Reads a folder's frames on from its cursor. Used by one thread at a time.

    ``read`` moves ahead, ``acknowledge`` makes that lasting and deletes what it passed, ``rewind`` goes back to what
    was last acknowledged.

    Args:
        folder: The folder.
        from_the_beginning: Read everything that is there, also what Redis has.
    """

    def __init__(self, folder: Path, *, from_the_beginning: bool = False) -> None:
        self.folder = folder
        self._cuts: dict[int, int] = {}  # bytes cut off a segment
        self.unacknowledged: list[int] = []  # sizes of the frames read since
        self._acknowledged = Position(0, 0) if from_the_beginning else self._load()
        self._position = self._acknowledged

    @property
    def acknowledged(self) -> Position:
        """Where the frames end that Redis has."""
        return self._acknowledged

    @property
    def cut_bytes(self) -> int:
        """Bytes that did not check and were passed over."""
        return sum(self._cuts.values())

    def read(self, *, max_records: int, max_bytes: int, end: Position | None) -> list[Frame]:
        """The next frames, at least one if there is one before ``end`` (None: the end of the last segment)."""
        frames: list[Frame] = []
        n_bytes = 0
        for segment in segments(self.folder):
            if segment < self._position.segment or (end is not None and segment > end.segment):
                continue
            start = self._position.offset if segment == self._position.segment else 0
            limit = end.offset if end is not None and segment == end.segment else None
            with contextlib.closing(self._frames(segment, max(start, len(MAGIC)), limit)) as found:
                for frame in found:
                    frames.append(frame)
                    n_bytes += frame.n_bytes
                    if len(frames) >= max_records or n_bytes >= max_bytes:
                        return frames
        return frames

    def taken(self, frames: list[Frame]) -> None:
        """Move behind frames that were read and are on their way to Redis."""
        if frames:
            self._position = frames[-1].end
            self.unacknowledged.extend(frame.n_bytes for frame in frames)

    def acknowledge(self) -> None:
        """Redis has everything taken so far: save the cursor, delete the segments it passed.

        Raises:
            OSError: The cursor could not be saved. Records may be sent twice after a crash; none is lost.
        """
        self._acknowledged = self._position
        self.unacknowledged.clear()
        for segment in segments(self.folder):
            if segment < self._acknowledged.segment:
                segment_path(self.folder, segment).unlink()
        with atomic_replace(self.folder / _CURSOR, durable=False) as draft:
            draft.write_text(f"{self._acknowledged.segment} {self._acknowledged.offset}\n")

    def rewind(self) -> None:
        """Forget what was taken since the last acknowledgement: it will be read again."""
        self._position = self._acknowledged
        self.unacknowledged.clear()

    def measure(self) -> tuple[int, int]:
        """Records and bytes behind the cursor, read through to the end of a folder nobody writes to."""
        n_records = n_bytes = 0
        while frames := self.read(max_records=1024, max_bytes=SEGMENT_BYTES, end=None):
            self.taken(frames)
            n_records += len(frames)
            n_bytes += sum(frame.n_bytes for frame in frames)
        self.rewind()
        return n_records, n_bytes

    def _frames(self, segment: int, start: int, limit: int | None) -> Generator[Frame, None, None]:
        """Frames of one segment. At one that does not check the rest of the segment is cut: passed over and told."""
        path = segment_path(self.folder, segment)
        with path.open("rb") as file:
            end = os.fstat(file.fileno()).st_size if limit is None else limit
            if file.read(len(MAGIC)) == MAGIC:
                file.seek(start)
                while start < end:
                    frame = _next_frame(file, segment, start, end)
                    if frame is None:
                        break
                    start = frame.end.offset
                    yield frame
        if start < end and segment not in self._cuts:
            log.warning("spool_cut", folder=self.folder.name, segment=segment, cut_bytes=end - start)
            self._cuts[segment] = end - start

    def _load(self) -> Position:
        try:
            segment, offset = (self.folder / _CURSOR).read_text().split()
            return Position(int(segment), int(offset))
        except (OSError, ValueError):
            # None yet, or torn by a power cut: from the beginning. Readers drop what they have already.
            return Position(0, 0)


def _next_frame(file: IO[bytes], segment: int, start: int, end: int) -> Frame | None:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    length, checksum, id_length = _HEADER.unpack(header)
    if id_length > length or start + _HEADER.size + length > end:
        return None
    payload = file.read(length)
    if len(payload) < length or _checksum(payload, id_length) != checksum:
        return None
    return Frame(payload[:id_length], payload[id_length:], Position(segment, start + _HEADER.size + length))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
