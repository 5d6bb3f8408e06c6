"""A night's folder: its manifest, its steps, and writes that a crash cannot halve."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from distill.errors import DataError, RunMismatch
from gateway.files import write_atomically

MANIFEST = "manifest.json"
_LAST_STEP = "report"


class RunDir:
    """One night: what it was told (manifest), what it has done (one marker a step, written when the step is through).

    Args:
        path: The folder; its name is the run's id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The run's id: when it began, in UTC."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether the night came to its end, whatever its verdict."""
        return self.result(_LAST_STEP) is not None

    @property
    def manifest(self) -> dict[str, Any]:
        """What the night was told.

        Raises:
            DataError: It is missing or malformed.
        """
        return _read_json(self.path / MANIFEST)

    @property
    def number(self) -> int:
        """Which run of its folder this is, counted from 1; 0 where the manifest does not say or cannot be read."""
        try:
            number = self.manifest.get("number", 0)
        except DataError:
            return 0
        return number if isinstance(number, int) else 0

    @property
    def attempts(self) -> int:
        """How often the night was begun: once, and once more each time it was taken up again."""
        return sum(line.get("step") is None for line in self._log())

    def result(self, step: str) -> dict[str, Any] | None:
        """What a step left, or None while it is not through.

        Raises:
            DataError: Its marker is malformed; says what to do.
        """
        path = self.marker(step)
        try:
            return _read_json(path) if path.exists() else None
        except DataError as error:
            raise DataError(f"{error}: remove it, and the step is run again") from error

    def mark(self, step: str, result: dict[str, Any]) -> None:
        """The step is through: from now on it is never run again in this night."""
        write_atomically(self.marker(step), json.dumps(result, ensure_ascii=False, indent=1).encode() + b"\n")

    def unmark(self, step: str) -> None:
        """The step is to be run again."""
        self.marker(step).unlink(missing_ok=True)

    def marker(self, step: str) -> Path:
        """The file that says that a step is through, and what it left."""
        return self.path / "steps" / f"{step}.json"

    def write_once(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Write facts once per night; on resume, return those that were written first."""
        path = self.path / "draws" / f"begun-{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(facts).encode())
        return _read_json(path)

    def begin(self) -> None:
        """Note that the night begins, or is taken up again."""
        self._note(step=None)

    def spent(self, step: str, seconds: float) -> None:
        """Note what an attempt at a step took, however it ended."""
        self._note(step=step, seconds=round(seconds, 3))

    def seconds(self, step: str) -> float:
        """What all attempts at a step took; one that was killed leaves no note."""
        found = (line.get("seconds") for line in self._log() if line.get("step") == step)
        return float(sum(seconds for seconds in found if isinstance(seconds, int | float)))

    def _note(self, **fields: Any) -> None:
        with appending(self.path / "attempts.jsonl") as sink:
            sink.write(json.dumps({"at": time.time(), **fields}).encode() + b"\n")

    def _log(self) -> list[dict[str, Any]]:
        """The notes of all attempts; they only tell of time spent, so that a line which is none is passed over."""
        path, found = self.path / "attempts.jsonl", []
        for line in whole_lines(path) if path.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]


def new_run(runs_dir: Path, manifest: dict[str, Any]) -> RunDir:
    """Make a new run directory with its manifest, numbered after all that are there."""
    began = datetime.now(UTC)
    path = runs_dir / f"{began:%Y-%m-%dT%H-%M-%S}"
    while path.exists():  # a second one within the second
        path = path.with_name(path.name + "b")
    numbered = {"number": 1 + max((run.number for run in runs(runs_dir)), default=0), **manifest}
    write_atomically(path / MANIFEST, json.dumps(numbered, indent=1, default=str).encode() + b"\n")
    return RunDir(path)


def runs(runs_dir: Path) -> list[RunDir]:
    """Return every run in the order in which they were begun.

    The manifest's number decides, not the date in the name: a clock that was ahead once would keep its run the last
    one for as long. Runs of versions that wrote no number come first, by name. A folder without a manifest is no run.
    """
    folders = sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []
    return sorted(
        (RunDir(folder) for folder in folders if (folder / MANIFEST).is_file()), key=lambda run: (run.number, run.id)
    )


def find_run(runs_dir: Path, id: str) -> RunDir:
    """A run by its id, or by its path.

    Raises:
        RunMismatch: There is none.
    """
    for path in (runs_dir / id, Path(id)):
        if (path / MANIFEST).is_file():
            return RunDir(path)
    raise RunMismatch(f"there is no run {id} in {runs_dir}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON") from error
    if not isinstance(document, dict):
        raise DataError(f"{path} is no JSON object")
    return document


def keep_lines(path: Path, stays: Callable[[bytes], bool]) -> int:
    """Drop lines from a file of lines, and a last one that a killed run left unfinished; in little memory.

    Args:
        path: The file; untouched where every line stays.
        stays: Whether a line stays, given without its newline.

    Returns:
        How many went.
    """
    with path.open("rb") as lines:
        going = {number for number, line in enumerate(lines) if not (line.endswith(b"\n") and stays(line[:-1]))}
    if going:
        with path.open("rb") as lines:
            write_atomically(path, (line for number, line in enumerate(lines) if number not in going))
    return len(going)


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
