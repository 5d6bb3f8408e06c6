"""Reader of the journal's archive: Parquet, a folder a day, one row for each record id.

    archive/day=2026-11-22/part-00000.parquet
    archive/_quarantine/<hash>.json             records that this version cannot read, as they came

Parts are added or replaced atomically, so a reader sees each row once, at any moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distill.dataset.schema import SCHEMA_VERSION, VERSION_KEY
from distill.errors import DataError
from gateway.errors import JournalError
from gateway.journal.record import CompletionRecord, FeedbackRecord, Record, decode

_BATCH_ROWS = 256
_NEEDED = {"id", "kind", "record"}


class Archive:
    """All collected records.

    Args:
        folder: The archive's folder; a missing one is an empty archive.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def completions(self) -> Iterator[CompletionRecord]:
        """Yield every completion, oldest day first.

        Raises:
            DataError: A part cannot be read.
        """
        return (record for record in self._records("completion") if isinstance(record, CompletionRecord))

    def feedback(self) -> Iterator[FeedbackRecord]:
        """Yield every feedback, oldest day first.

        Raises:
            DataError: A part cannot be read.
        """
        return (record for record in self._records("feedback") if isinstance(record, FeedbackRecord))

    def parts(self, day: str = "*") -> list[Path]:
        return sorted(self.folder.glob(f"day={day}/part-*.parquet"))

    def count(self) -> int:
        """Return the number of rows.

        Raises:
            DataError: A part cannot be read; it is named.
        """
        total = 0
        for path in self.parts():
            with open_part(path) as part:
                total += part.metadata.num_rows
        return total

    def _records(self, kind: str) -> Iterator[Record]:
        for path in self.parts():
            with contextlib.ExitStack() as opened:
                part = opened.enter_context(open_part(path))
                batches = part.iter_batches(_BATCH_ROWS, columns=["kind", "record"])
                while (texts := _next_texts(path, batches, kind)) is not None:
                    yield from texts


@contextlib.contextmanager
def open_part(path: Path) -> Iterator[Any]:
    """Open the file as a ``pyarrow.parquet.ParquetFile`` that verifies checksums.

    Raises:
        DataError: It cannot be read, or a newer version wrote it.
    """
    with readable(path):
        part = pq.ParquetFile(path, page_checksum_verification=True)
    try:
        version = (part.schema_arrow.metadata or {}).get(VERSION_KEY, b"").decode("ascii", "replace")
        if not version.isdecimal():
            raise DataError(f"{path} is not a part of a journal archive: move it out of the archive's folder")
        if int(version) > SCHEMA_VERSION:
            raise DataError(f"{path} was written by a newer version (archive schema {version}): use that one")
        with readable(path):
            if not _NEEDED.issubset(part.schema_arrow.names):
                raise ValueError("columns are missing")
        yield part
    finally:
        part.close()


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Translate Arrow's errors for a damaged file into a ``DataError`` with advice."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}): restore it from a backup, or move it out of the archive "
            "to go on without its records; then run `python -m distill collect` again"
        ) from error


def _next_texts(path: Path, batches: Iterator[Any], kind: str) -> list[Record] | None:
    """Return the next batch's records of one kind; None after the last batch."""
    with readable(path):
        batch = next(batches, None)
        if batch is None:
            return None
        rows = batch.to_pydict()
    try:
        return [
            decode(text.encode()) for found, text in zip(rows["kind"], rows["record"], strict=True) if found == kind
        ]
    except JournalError as error:
        raise DataError(f"{path} holds a row that is not a record: {error}") from error
