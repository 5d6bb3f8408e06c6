"""The spool's files: append-only segments of framed records, and a cursor for what Redis has.

    <spool_dir>/worker-…/00000001.seg   MAGIC, then frames
                         cursor         "<segment> <offset>": everything before it is in Redis

A frame is a header (length, CRC-32, length of the id), the record's id and its bytes. A crash can only tear the end of
a segment, and no frame after a torn one was ever acknowledged to a caller: readers cut a segment at the first frame
whose checksum is wrong.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import structlog

from gateway.files import atomic_replace, sync_folder

MAGIC = b"RATCHET1"
SEGMENT_BYTES = 64 * 1024 * 1024

_HEADER = struct.Struct("<IIH")
_CURSOR = "cursor"
_BATCH_RECORDS = 256

log = structlog.get_logger()


class Position(NamedTuple):
    """A position in a folder's segments; positions compare in the order of writing."""

    segment: int
    offset: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One record in the spool, and the position after it."""

    record_id: bytes
    data: bytes
    end: Position

    @property
    def n_bytes(self) -> int:
        return _HEADER.size + len(self.record_id) + len(self.data)


def pack(record_id: bytes, data: bytes) -> bytes:
    payload = record_id + data
    return _HEADER.pack(len(payload), _checksum(payload, len(record_id)), len(record_id)) + payload


def _checksum(payload: bytes, id_length: int) -> int:
    # With a seed: a frame of zeros (blocks that a power cut left unwritten) is never valid.
    return zlib.crc32(payload, 0x5EED ^ id_length)


def segment_path(folder: Path, segment: int) -> Path:
    return folder / f"{segment:08d}.seg"


def segments(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.seg"))


class SegmentWriter:
    """Appends to a new folder's segments of about ``segment_bytes``. Used by one thread.

    ``sync`` makes a file's data durable (``os.fdatasync``); None leaves that to the kernel.
    """

    def __init__(self, folder: Path, *, sync: Callable[[int], None] | None, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder = folder
        self._sync = sync
        self._segment_bytes = segment_bytes
        self._fd: int | None = None
        self._end = Position(0, 0)

    def write(self, frames: bytes) -> Position:
        """Append whole frames, all or none, and make them durable; return the position after them.

        Raises:
            OSError: The disk refused. Nothing of ``frames`` remains, and the next call may succeed.
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
                # After a failed fsync the kernel may have dropped the pages: do not write to this file again.
                self._cut(self._fd)
                self.close()
                raise
        self._end = Position(self._end.segment, self._end.offset + len(frames))
        return self._end

    def close(self) -> None:
        """Close the segment; a later write starts a new one."""
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
            # The torn frame stays and readers cut it; nothing may be written after it.
            self.close()


class SpoolReader:
    """Reads a folder's frames from its cursor on. Used by one thread at a time.

    ``read`` returns frames, ``advance`` moves after them, ``acknowledge`` saves that position and deletes the segments
    before it, ``rewind`` goes back to the position last acknowledged. ``from_start`` also reads what Redis has.
    """

    def __init__(self, folder: Path, *, from_start: bool = False) -> None:
        self.folder = folder
        self._cut_segments: set[int] = set()  # each is logged once
        self.unacknowledged: list[int] = []  # sizes of the frames since the last acknowledgement
        self.acknowledged = Position(0, 0) if from_start else self._load()  # after the frames that Redis has
        self._position = self.acknowledged

    def read(self, *, max_records: int, max_bytes: int, end: Position | None) -> list[Frame]:
        """Return the next frames, at least one if there is one before ``end`` (None: the end of the last segment)."""
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

    def read_all(self) -> Iterator[Frame]:
        """Yield every frame up to the end of the last segment, and move after them."""
        while frames := self.read(max_records=_BATCH_RECORDS, max_bytes=SEGMENT_BYTES, end=None):
            self._position = frames[-1].end
            yield from frames

    def advance(self, frames: list[Frame]) -> None:
        """Move after frames that were read and sent to Redis."""
        if frames:
            self._position = frames[-1].end
            self.unacknowledged.extend(frame.n_bytes for frame in frames)

    def acknowledge(self) -> None:
        """Save the current position as the cursor, once Redis has everything before it; delete the segments before it.

        Raises:
            OSError: The cursor could not be saved. After a crash records may be sent twice; none is lost.
        """
        self.acknowledged = self._position
        self.unacknowledged.clear()
        for segment in segments(self.folder):
            if segment < self.acknowledged.segment:
                segment_path(self.folder, segment).unlink()
        with atomic_replace(self.folder / _CURSOR, durable=False) as draft:
            draft.write_text(f"{self.acknowledged.segment} {self.acknowledged.offset}\n")

    def rewind(self) -> None:
        """Go back to the last acknowledged position, to read the frames after it again."""
        self._position = self.acknowledged
        self.unacknowledged.clear()

    def measure(self) -> tuple[int, int]:
        """Count records and bytes after the cursor, in a folder that nobody writes to."""
        sizes = [frame.n_bytes for frame in self.read_all()]
        self.rewind()
        return len(sizes), sum(sizes)

    def _frames(self, segment: int, start: int, limit: int | None) -> Generator[Frame, None, None]:
        """Yield the frames of one segment. Skip the rest of it, with a warning, after the first invalid frame."""
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
        if start < end and segment not in self._cut_segments:
            log.warning("spool_cut", folder=self.folder.name, segment=segment, cut_bytes=end - start)
            self._cut_segments.add(segment)

    def _load(self) -> Position:
        try:
            segment, offset = (self.folder / _CURSOR).read_text().split()
            return Position(int(segment), int(offset))
        except (OSError, ValueError):
            # Missing, or torn by a power cut: read from the start. The stream's readers drop what they have already.
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
