"""Behaviours: the models' answers to fixed probes, night by night. Samples and rewards are cached by behaviour.

A name does not identify the weights behind it. So each night samples and scores a few fixed probes. A behaviour that
agrees with one of an earlier night has that one's id, and shares its caches; any other gets a new id. Values are
compared with a tolerance, never by a hash: the same weights give slightly different numbers in another batch.

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
class Behaviour:
    """A behaviour's id; ``changed`` is True if these names had another behaviour in an earlier night."""

    id: str
    changed: bool


def recognise(folder: Path, kind: str, of: dict[str, str], behaviour: Any, same: Same) -> Behaviour:
    """Find a behaviour among the known ones, or add it as a new one.

    Args:
        folder: The store of samples.
        kind: ``answers`` or ``rewards``.
        of: The model's names; another name is another behaviour.
        behaviour: The results of the probes, JSON-ready.
        same: Compares a known behaviour with this one.

    Raises:
        DataError: A file of behaviours is malformed, or cannot be written.
    """
    known = [(path, document["behaviour"]) for path, document in _read(folder, kind) if document["of"] == of]
    for path, earlier in known:
        try:
            agrees = same(earlier, behaviour)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _malformed(path) from error
        if agrees:
            _mark_as_last(path, known)
            return Behaviour(_id(path), changed=False)
    content = json.dumps({"of": of, "behaviour": behaviour}, sort_keys=True).encode()
    name = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
    path = folder / _FOLDER / f"{kind}-{name}.json"
    write_atomically(path, content)
    _mark_as_last(path, known)
    return Behaviour(name, changed=bool(known))


def _mark_as_last(path: Path, known: Sequence[tuple[Path, Any]]) -> None:
    """Set the file's time after those of all others: a file system's clock may not advance between two writes."""
    newest = max((other.stat().st_mtime_ns for other, _ in known if other != path), default=0)
    time_ns = max(time.time_ns(), newest + 1)
    os.utime(path, ns=(time_ns, time_ns))


def last_behaviour(folder: Path, kind: str, of: dict[str, str]) -> str:
    """Return the id of the last behaviour under these names; empty if there is none.

    Raises:
        DataError: A file of behaviours is malformed.
    """
    known = [path for path, document in _read(folder, kind) if document["of"] == of]
    return _id(max(known, key=lambda path: path.stat().st_mtime_ns)) if known else ""


def _read(folder: Path, kind: str) -> list[tuple[Path, dict[str, Any]]]:
    documents = []
    for path in sorted((folder / _FOLDER).glob(f"{kind}-*.json")):
        try:
            document = json.loads(path.read_bytes())
            documents.append((path, {"of": document["of"], "behaviour": document["behaviour"]}))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise _malformed(path) from error
    return documents


def _malformed(path: Path) -> DataError:
    return DataError(f"{path} cannot be read: remove it; its samples or rewards are then made again")


def _id(path: Path) -> str:
    return path.stem.rpartition("-")[2]
