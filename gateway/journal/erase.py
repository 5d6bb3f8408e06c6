"""Erase records from the spool's files, for a person who asked for it.

A gateway that runs writes to its folder all the while. What Redis has taken of it (before the cursor) is never read
again, so those frames are overwritten in place. Frames after the cursor are on their way to Redis and are only counted:
their text is erased by a second call once they are there. A folder that no process holds is claimed and rewritten.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import JournalError
from gateway.files import sync_folder
from gateway.journal.claim import Claim, worker_folders
from gateway.journal.record import Record, decode
from gateway.journal.spool import MAGIC, SEGMENT_BYTES, Frame, Tail, pack, segment_path, segments

Goes = Callable[[Record], bool]

_BATCH_RECORDS = 256


@dataclass(frozen=True, slots=True)
class Erased:
    """Records erased, and records that a running gateway has still to send to Redis."""

    records: int
    waiting: int


def spooled(spool_dir: Path) -> Iterator[Record]:
    """Every readable record in the spool, whether Redis has it or not."""
    for folder in worker_folders(spool_dir):
        for frame in _frames(folder):
            record = _record(frame)
            if record is not None:
                yield record


def erase(spool_dir: Path, goes: Goes) -> Erased:
    """Erase the records that are to go. An absent spool has none.

    Raises:
        OSError: The spool cannot be read or written.
    """
    if not spool_dir.is_dir():
        return Erased(0, 0)
    records = waiting = 0
    claims = Claim.orphans(spool_dir)
    try:
        for claim in claims:
            records += _rewrite(claim.folder, goes)
        for folder in set(worker_folders(spool_dir)) - {claim.folder for claim in claims}:
            erased, left = _overwrite(folder, goes)
            records += erased
            waiting += left
    finally:
        for claim in claims:
            claim.release()
    return Erased(records, waiting)


def _rewrite(folder: Path, goes: Goes) -> int:
    """Replace the segments of a folder that this process holds by one that lacks the records that are to go."""
    draft = folder / "erasing"
    draft.unlink(missing_ok=True)  # of an earlier call that was killed
    tail = Tail(folder)
    going = sum(_goes(frame, goes) for frame in _frames(folder))
    if not going:
        return 0
    old = segments(folder)
    with draft.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(MAGIC)
        while frames := tail.read(max_records=_BATCH_RECORDS, max_bytes=SEGMENT_BYTES, end=None):
            tail.taken(frames)
            for frame in frames:
                if not _goes(frame, goes):
                    file.write(pack(frame.record_id, frame.data))
        file.flush()
        os.fsync(file.fileno())
    # Killed from here on, a record is in two segments: readers drop the second one.
    draft.rename(segment_path(folder, old[-1] + 1))
    sync_folder(folder)
    for segment in old:
        segment_path(folder, segment).unlink()
    sync_folder(folder)
    return going


def _overwrite(folder: Path, goes: Goes) -> tuple[int, int]:
    """Overwrite what Redis has of another process's folder; returns what was erased and what is not in Redis yet."""
    acknowledged = Tail(folder).acknowledged
    erased = waiting = 0
    for frame in _frames(folder):
        if not _goes(frame, goes):
            continue
        if frame.end > acknowledged:
            waiting += 1
            continue
        # A frame that checks, of the same length: a reader that lost its cursor still finds the frames behind it.
        blank = pack(frame.record_id, b"\0" * len(frame.data))
        path = segment_path(folder, frame.end.segment)
        # Not there any more: its gateway has deleted the whole segment.
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            file.seek(frame.end.offset - len(blank))
            file.write(blank)
            file.flush()
            os.fsync(file.fileno())
        erased += 1
    return erased, waiting


def _frames(folder: Path) -> Iterator[Frame]:
    """Every frame of a folder's segments, from the first one on."""
    everything = Tail(folder, from_the_beginning=True)
    try:
        while frames := everything.read(max_records=_BATCH_RECORDS, max_bytes=SEGMENT_BYTES, end=None):
            everything.taken(frames)
            everything.unacknowledged.clear()
            yield from frames
    except FileNotFoundError:
        return  # Redis has taken the segment meanwhile, and its gateway deleted it


def _goes(frame: Frame, goes: Goes) -> bool:
    record = _record(frame)
    return record is not None and goes(record)


def _record(frame: Frame) -> Record | None:
    try:
        return decode(frame.data)
    except JournalError:
        return None  # erased already, or of another version: no reader can tell whose it is
