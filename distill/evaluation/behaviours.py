"""The behaviours that nights have met: what models said to fixed probes, by which caches of draws and rewards are kept.

A name says nothing of the weights behind it. So each night scores and draws a few fixed probes. A behaviour that agrees
with one of an earlier night has that one's id, and with it that night's caches; any other has a new id. Values are
compared with a tolerance, never by a hash of them: the same weights give slightly other numbers in another batch.

    <draws_dir>/probes/<kind>-<id>.json
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import DataError
from gateway.files import write_atomically

_FOLDER = "probes"
_DIGEST_BYTES = 6

Same = Callable[[Any, Any], bool]


@dataclass(frozen=True, slots=True)
class Met:
    """A behaviour's id, and whether what went by this name behaved otherwise in an earlier night."""

    id: str
    changed: bool


def meet(folder: Path, kind: str, of: dict[str, str], behaviour: Any, same: Same) -> Met:
    """Find a behaviour among those met before, or note it as a new one.

    Args:
        folder: Of draws.
        kind: What behaves: ``answers`` or ``rewards``.
        of: By what names it goes; another name is another behaviour.
        behaviour: What it said to the probes, as JSON holds it.
        same: Whether a behaviour met before and this one agree.

    Raises:
        DataError: A file of behaviours is malformed, or cannot be written.
    """
    known = [(path, found["behaviour"]) for path, found in _read(folder, kind) if found["of"] == of]
    for path, earlier in known:
        try:
            agrees = same(earlier, behaviour)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _malformed(path) from error
        if agrees:
            _mark_as_last(path, known)
            return Met(_id(path), changed=False)
    content = json.dumps({"of": of, "behaviour": behaviour}, sort_keys=True).encode()
    name = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
    path = folder / _FOLDER / f"{kind}-{name}.json"
    write_atomically(path, content)
    _mark_as_last(path, known)
    return Met(name, changed=bool(known))


def _mark_as_last(path: Path, known: Sequence[tuple[Path, Any]]) -> None:
    """Set the file's time after those of all others: a file system's clock may stand still between two writes."""
    newest = max((other.stat().st_mtime_ns for other, _ in known if other != path), default=0)
    time_ns = max(time.time_ns(), newest + 1)
    os.utime(path, ns=(time_ns, time_ns))


def last_met(folder: Path, kind: str, of: dict[str, str]) -> str:
    """The id of the behaviour that was met last under these names; empty where none was.

    Raises:
        DataError: A file of behaviours is malformed.
    """
    known = [path for path, found in _read(folder, kind) if found["of"] == of]
    return _id(max(known, key=lambda path: path.stat().st_mtime_ns)) if known else ""


def _read(folder: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    for path in sorted((folder / _FOLDER).glob(f"{kind}-*.json")):
        try:
            document = json.loads(path.read_bytes())
            found.append((path, {"of": document["of"], "behaviour": document["behaviour"]}))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _malformed(path) from error
    return found


def _malformed(path: Path) -> DataError:
    return DataError(f"{path} cannot be read: remove it, and what was drawn or scored under it is made anew")


def _id(path: Path) -> str:
    return path.stem.rpartition("-")[2]
