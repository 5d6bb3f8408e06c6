"""Replace files so that a crash leaves the old content or the new one, and make them durable."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

_DRAFT_BYTES = 8
_DRAFT = re.compile(r"\..+\.[0-9a-f]{16}")


@contextlib.contextmanager
def atomic_replace(path: Path, *, durable: bool) -> Iterator[Path]:
    """Yield the path of a draft in the same folder; put the draft in the file's place when the block ends.

    Args:
        path: The file to make or replace.
        durable: Sync the draft and then the folder, so that the new content survives a power cut. Otherwise it
            survives the end of this process.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(_DRAFT_BYTES)}")
    try:
        yield draft
        if durable:
            sync_file(draft)
        os.replace(draft, path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # the error of a full disk names no file
        raise
    if durable:
        sync_folder(path.parent)


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Replace the whole file, durably; make its folder when missing.

    Args:
        path: The file.
        content: All of it, or its parts one after another.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's draft: only its owner could read that, and others read reports and metrics.
    with atomic_replace(path, durable=True) as draft, draft.open("xb") as sink:
        sink.writelines([content] if isinstance(content, bytes) else content)


def drop_drafts(folder: Path) -> None:
    """Delete the drafts that killed writers left in a folder and below it. Nobody may write there meanwhile."""
    for path in folder.rglob(".*"):
        if _DRAFT.fullmatch(path.name) and path.is_file():
            path.unlink()


def sync_file(path: Path) -> None:
    """Make a closed file's content durable. A write error since its last sync is raised here."""
    _sync(path, os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Make the folder's list of files durable: a power cut can lose a new or renamed file that was synced itself."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
