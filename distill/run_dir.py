"""A night's folder: its paths, its manifest, and writes that a crash cannot halve."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from distill.errors import DataError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file as a whole: after a crash there is the old content or the new one, on disk for sure.

    Args:
        path: The file; its folder is made when missing.
        content: All of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    sync_folder(path.parent)


def whole_lines(path: Path) -> list[bytes]:
    """The lines of a file that is only ever appended to; a last one that a killed run left unfinished is none.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return whole.split(b"\n") if newline else []


@contextlib.contextmanager
def appending(path: Path) -> Iterator[IO[bytes]]:
    """Go on with a file of lines, after cutting off a last one that a killed run left unfinished.

    Raises:
        DataError: The file cannot be written (the disk is full, …).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as sink:
            content = path.read_bytes()
            os.ftruncate(sink.fileno(), content.rfind(b"\n") + 1)
            del content
            yield sink
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make what was renamed into the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
