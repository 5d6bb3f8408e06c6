"""Writer of the archive: one at a time, exactly one row for each record id, even if it is killed at any moment.

A record's day is its own (from its ``time_ms``), so a second copy, however late, is found by its id in that day's
folder. New rows go into the day's last part until it is full: old and new rows are written to a temporary file, synced,
and renamed over the part. So no row is ever duplicated or lost, and there are few small files to merge; in return a row
is rewritten a few times on its first night.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from filelock import FileLock, Timeout

from distill.dataset.archive import Archive, open_part, readable
from distill.dataset.schema import SCHEMA, Row, row_of, table_of
from distill.errors import DataError, NightError
from gateway.errors import JournalError
from gateway.files import sync_folder, write_atomically

PART_BYTES = 64 * 1024 * 1024  # uncompressed; a full part is never rewritten
_ROW_GROUP_ROWS = 4096
CLOCK_WRONG = timedelta(days=7)
"""Spools empty within days: a larger difference between a record's time and its collection means a wrong clock."""
_REMEMBERED_DAYS = 3  # days whose ids are kept in memory, about 100 bytes a record
# Least and greatest value of columns that readers filter by; of texts they would be whole texts, twice.
_STATISTICS = ["id", "kind", "time", "conversation_key", "policy_version", "adapter", "selection", "completion_id"]
_DICTIONARY = ["kind", "key_id", "model", "adapter", "arm", "reward_model", "selection"]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Added:
    """The result of adding records: new rows by kind, duplicates of existing rows, files of unreadable records.

    ``oldest_ms`` is the time of the oldest readable record, by its gateway's clock (since the epoch).
    """

    completions: int
    feedback: int
    duplicates: int
    unreadable: tuple[Path, ...]
    oldest_ms: int | None = field(default=None, compare=False)


@contextlib.contextmanager
def writing(archive: Archive, *, part_bytes: int = PART_BYTES) -> Iterator[ArchiveWriter]:
    """Lock the archive for writing. The kernel releases the lock when this process ends.

    Raises:
        NightError: Another process holds it.
        DataError: The folder cannot be written.
    """
    with _writable(archive.folder):
        if not archive.folder.exists():
            archive.folder.mkdir(parents=True)
            sync_folder(archive.folder.parent)
        lock = FileLock(archive.folder / ".lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            raise NightError(f"another process is writing to the archive {archive.folder}") from None
    try:
        yield ArchiveWriter(archive, part_bytes)
    finally:
        lock.release()


class ArchiveWriter:
    """Adds records to an archive that this process has locked (``writing``)."""

    def __init__(self, archive: Archive, part_bytes: int) -> None:
        self._archive = archive
        self._part_bytes = part_bytes
        self._known: OrderedDict[str, set[str]] = OrderedDict()  # day → ids in its parts
        self.damaged: dict[Path, DataError] = {}
        """Unreadable parts. New records go into other parts; copies of records in a damaged part get a second row."""
        with _writable(archive.folder):
            # Temporary files of a killed writer.
            for leftover in [*archive.folder.glob("day=*/.part-*"), *archive.folder.glob("_quarantine/.*")]:
                leftover.unlink()

    def identity(self) -> str:
        """Return the archive's unique, permanent name; created at the first call."""
        path = self._archive.folder / ".identity"
        with _writable(self._archive.folder):
            if not path.exists():
                write_atomically(path, uuid.uuid4().hex.encode())
            return path.read_text()

    def add(self, payloads: Sequence[bytes], collected: datetime | None = None) -> Added:
        """Add a row for each record without one, synced to disk.

        Args:
            payloads: Records as the journal encodes them; unreadable ones go to the quarantine unchanged.
            collected: Time of collection, by Redis's clock.

        Raises:
            DataError: The disk is full or cannot be written. Some records may have become rows: add them all again.
        """
        unreadable = set()
        days: defaultdict[str, dict[str, Row]] = defaultdict(dict)
        duplicates = 0
        for data in payloads:
            try:
                row = row_of(data, collected)
            except (JournalError, DataError) as error:
                unreadable.add(self._quarantine(data, str(error)))
                continue
            duplicates += row.id in days[row.day]
            days[row.day].setdefault(row.id, row)
        kinds = {"completion": 0, "feedback": 0}
        for day, rows in sorted(days.items()):
            known = self._ids(day)
            fresh = [row for row in rows.values() if row.id not in known]
            duplicates += len(rows) - len(fresh)
            new, misfits = table_of(fresh)
            for row in misfits:
                unreadable.add(self._quarantine(row.columns["record"].encode(), f"{row.kind} record fits no row"))
            if new.num_rows:
                self._append(day, new)
                known.update(new.column("id").to_pylist())
            for kind in new.column("kind").to_pylist():
                kinds[kind] += 1
        oldest_ms = min((row.columns["time"] for rows in days.values() for row in rows.values()), default=None)
        return Added(kinds["completion"], kinds["feedback"], duplicates, tuple(sorted(unreadable)), oldest_ms)

    def keep(self, path: Path, kept: pa.Table) -> None:
        """Replace a part by those of its rows that stay; remove it if none do.

        Raises:
            DataError: The folder cannot be written.
        """
        self._known.pop(path.parent.name.removeprefix("day="), None)
        with _writable(self._archive.folder):
            if kept.num_rows:
                write_atomically(path, _parquet(kept))
            else:
                path.unlink()
                sync_folder(path.parent)

    def drop_before(self, day: str, today: str) -> int:
        """Remove every part and quarantined record of earlier days; return the number of removed rows.

        A part stays as long as it holds a record whose gateway's clock was wrong and that was collected later.

        Args:
            day: The first day that is kept, as ``2026-11-22``.
            today: The current day; records of later days came from a gateway whose clock was ahead.

        Raises:
            DataError: A part cannot be read, or the folder cannot be written.
        """
        rows = 0
        for path in self._archive.parts():
            name = path.parent.name.removeprefix("day=")
            if day <= name <= today:
                continue
            days = _days(path)
            if max(days, default="") >= day:
                continue
            rows += len(days)
            self._known.pop(name, None)
            with _writable(self._archive.folder):
                path.unlink()
                sync_folder(path.parent)
        oldest = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
        with _writable(self._archive.folder):
            for path in self._archive.folder.glob("_quarantine/*.json"):
                if path.stat().st_mtime < oldest:
                    path.unlink()
        return rows

    def _ids(self, day: str) -> set[str]:
        """Return the ids with a row in this day, read from its parts' id columns once."""
        if day not in self._known:
            ids: set[str] = set()
            for path in self._archive.parts(day):
                try:
                    with open_part(path) as part, readable(path):
                        ids.update(part.read(columns=["id"]).column("id").to_pylist())
                except DataError as error:
                    self.damaged[path] = error
            self._known[day] = ids
        self._known.move_to_end(day)
        while len(self._known) > _REMEMBERED_DAYS:
            self._known.popitem(last=False)
        return self._known[day]

    def _append(self, day: str, rows: pa.Table) -> None:
        parts = self._archive.parts(day)
        number = int(parts[-1].stem.removeprefix("part-")) if parts else 0
        if parts and not self._reads_whole(parts[-1]):
            number += 1
        elif parts:
            with open_part(parts[-1]) as part, readable(parts[-1]):
                groups = range(part.metadata.num_row_groups)
                size = sum(part.metadata.row_group(group).total_byte_size for group in groups)
                if size + rows.nbytes > self._part_bytes:
                    number += 1
                else:
                    rows = pa.concat_tables([part.read(), rows], promote_options="default")
        folder = self._archive.folder / f"day={day}"
        with _writable(self._archive.folder):
            if not folder.exists():
                folder.mkdir()
                sync_folder(self._archive.folder)
            write_atomically(folder / f"part-{number:05d}.parquet", _parquet(rows))

    def _reads_whole(self, path: Path) -> bool:
        """Return True if the part can be read to its end; else note it as damaged."""
        try:
            with open_part(path) as part, readable(path):
                for _ in part.iter_batches():
                    pass
        except DataError as error:
            self.damaged[path] = error
        return path not in self.damaged

    def _quarantine(self, data: bytes, problem: str) -> Path:
        """Write an unreadable record to a file named by its hash, once."""
        name = hashlib.sha256(data).hexdigest()[:32]
        path = self._archive.folder / "_quarantine" / f"{name}.json"
        with _writable(self._archive.folder):
            if not path.exists():
                write_atomically(path, data)
                sync_folder(self._archive.folder)
        log.warning("record_unreadable", file=str(path), problem=problem)
        return path


def _parquet(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows.replace_schema_metadata(SCHEMA.metadata),
        sink,
        compression="zstd",
        use_dictionary=_DICTIONARY,
        write_statistics=_STATISTICS,
        row_group_size=_ROW_GROUP_ROWS,
        write_page_checksum=True,
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _days(path: Path) -> list[str]:
    """Return the day of each row: the record's own, or that of its collection if a clock was wrong.

    Raises:
        DataError: The part cannot be read.
    """
    with open_part(path) as part, readable(path):
        names = [name for name in ("time", "collected") if name in part.schema_arrow.names]
        columns = part.read(columns=names).to_pydict()
    times = columns["time"]
    days = []
    for time, collected in zip(times, columns.get("collected") or [None] * len(times), strict=True):
        wrong = collected is not None and abs(collected - time) > CLOCK_WRONG
        days.append((collected if wrong else time).date().isoformat())
    return days


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Translate errors of writing into a ``DataError`` with advice."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        hint = "free space" if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else "fix this"
        raise DataError(
            f"the archive {folder} cannot be written ({why}); nothing is lost, Redis keeps unarchived records: "
            f"{hint} and run `python -m distill collect` again"
        ) from error
