"""Erase records from the spool's files, when a person asks to be forgotten.

A running gateway goes on writing to its folder. Frames before the cursor are in Redis and are never read again, so they
are overwritten in place. Frames after the cursor are on their way to Redis and are only counted: call again once they
are there. A folder that no process owns is claimed and rewritten.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import JournalError
from gateway.files import atomic_replace, drop_drafts, sync_folder
from gateway.journal.claim import Claim, worker_folders
from gateway.journal.record import Record, decode
from gateway.journal.spool import MAGIC, Frame, SpoolReader, pack, segment_path, segments

Predicate = Callable[[Record], bool]


@dataclass(frozen=True, slots=True)
class Erased:
    """Number of records erased, and of records that a running gateway has not sent to Redis yet."""

    records: int
    waiting: int


def spool_records(spool_dir: Path) -> Iterator[Record]:
    """Yield every readable record in the spool, also those that Redis has."""
    frames = (frame for folder in worker_folders(spool_dir) for frame in _frames(folder))
    yield from (record for frame in frames if (record := _decode(frame)) is not None)


def erase(spool_dir: Path, matches: Predicate) -> Erased:
    """Erase the matching records; raise OSError if the spool cannot be read or written. A missing spool holds none."""
    if not spool_dir.is_dir():
        return Erased(0, 0)
    records = waiting = 0
    claims = Claim.orphans(spool_dir)
    try:
        for claim in claims:
            records += _rewrite(claim.folder, matches)
        for folder in set(worker_folders(spool_dir)) - {claim.folder for claim in claims}:
            erased, left = _overwrite(folder, matches)
            records += erased
            waiting += left
    finally:
        for claim in claims:
            claim.release()
    return Erased(records, waiting)


def _rewrite(folder: Path, matches: Predicate) -> int:
    """Replace a claimed folder's segments by one without the matching records; return how many were erased."""
    drop_drafts(folder)  # left by a killed call
    (folder / "erasing").unlink(missing_ok=True)  # the draft of earlier releases
    n_matching = sum(_matches(frame, matches) for frame in _frames(folder))
    if not n_matching:
        return 0
    old = segments(folder)
    new = segment_path(folder, old[-1] + 1)
    with atomic_replace(new, durable=True) as draft, draft.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(MAGIC)
        for frame in SpoolReader(folder).read_all():
            if not _matches(frame, matches):
                file.write(pack(frame.record_id, frame.data))
    # If this is killed from here on, a record is in two segments: readers drop the second one.
    for segment in old:
        segment_path(folder, segment).unlink()
    sync_folder(folder)
    return n_matching


def _overwrite(folder: Path, matches: Predicate) -> tuple[int, int]:
    """Overwrite what Redis has of another process's folder; return counts of erased records and of waiting ones."""
    acknowledged = SpoolReader(folder).acknowledged
    erased = waiting = 0
    for frame in _frames(folder):
        if not _matches(frame, matches):
            continue
        if frame.end > acknowledged:
            waiting += 1
            continue
        # A valid frame of the same length: a reader that lost its cursor still finds the frames after it.
        blank = pack(frame.record_id, b"\0" * len(frame.data))
        path = segment_path(folder, frame.end.segment)
        # The gateway may delete the whole segment in the meantime.
        with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
            file.seek(frame.end.offset - len(blank))
            file.write(blank)
            file.flush()
            os.fsync(file.fileno())
        erased += 1
    return erased, waiting


def _frames(folder: Path) -> Iterator[Frame]:
    # A running gateway may delete a segment in the meantime.
    with contextlib.suppress(FileNotFoundError):
        yield from SpoolReader(folder, from_start=True).read_all()


def _matches(frame: Frame, matches: Predicate) -> bool:
    record = _decode(frame)
    return record is not None and matches(record)


def _decode(frame: Frame) -> Record | None:
    try:
        return decode(frame.data)
    except JournalError:
        return None  # erased already, or of another version: nobody can tell whose it is
