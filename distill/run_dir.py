"""The folder of a night: manifest, markers of finished steps, attempts; and files of lines that survive a kill."""

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
_WRITTEN_AGAIN = "remove it, and it is written again"


class RunDir:
    """The folder of one night: its manifest, and one marker a step, written when the step is done.

    Args:
        path: The folder; its name is the run's id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def id(self) -> str:
        """The time at which the run began, in UTC."""
        return self.path.name

    @property
    def finished(self) -> bool:
        return self.result(_LAST_STEP) is not None

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, as written when the night began.

        Raises:
            DataError: It is missing or malformed.
        """
        return _read_json(self.path / MANIFEST)

    @property
    def number(self) -> int:
        """The run's number among all runs, from 1; 0 if the manifest has none or cannot be read."""
        try:
            number = self.manifest.get("number", 0)
        except DataError:
            return 0
        return number if isinstance(number, int) else 0

    @property
    def examples_file(self) -> Path:
        """Winners that no earlier night has trained on."""
        return self.path / "examples.jsonl"

    @property
    def replay_file(self) -> Path:
        """Winners of earlier nights, of which some may train again."""
        return self.path / "replay.jsonl"

    @property
    def held_out_file(self) -> Path:
        return self.path / "held_out.jsonl"

    @property
    def attempts(self) -> int:
        """The number of times that the night was started or resumed."""
        return sum(line.get("step") is None for line in self._log())

    def result(self, step: str) -> dict[str, Any] | None:
        """Return the content of a step's marker, or None while the step is not done.

        Raises:
            DataError: Its marker is malformed; says what to do.
        """
        path = self.marker(step)
        try:
            return _read_json(path) if path.exists() else None
        except DataError as error:
            raise DataError(f"{error}: remove it, and the step is run again") from error

    def mark(self, step: str, result: dict[str, Any]) -> None:
        """Write a step's marker: from now on the step is never run again in this night."""
        write_atomically(self.marker(step), json.dumps(result, ensure_ascii=False, indent=1).encode() + b"\n")

    def unmark(self, step: str) -> None:
        """Delete a step's marker, so that the step is run again."""
        self.marker(step).unlink(missing_ok=True)

    def marker(self, step: str) -> Path:
        return self.path / "steps" / f"{step}.json"

    def write_once(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Write facts once per night; on resume, return those that were written first.

        Raises:
            DataError: The file of an earlier attempt is malformed; says what to do.
        """
        path = self.path / "draws" / f"begun-{name}.json"
        if not path.exists():
            write_atomically(path, json.dumps(facts).encode())
        try:
            first = _read_json(path)
        except DataError as error:
            raise DataError(f"{error}: {_WRITTEN_AGAIN}") from error
        if missing := sorted(facts.keys() - first.keys()):
            raise DataError(f"{path} lacks {', '.join(missing)}: {_WRITTEN_AGAIN}")
        return first

    def log_attempt(self) -> None:
        """Log that the night is started or resumed."""
        self._append(step=None)

    def log_seconds(self, step: str, seconds: float) -> None:
        """Log the time that an attempt at a step took, however it ended."""
        self._append(step=step, seconds=round(seconds, 3))

    def seconds(self, step: str) -> float:
        """Return the time of all attempts at a step, but for attempts that were killed."""
        found = (line.get("seconds") for line in self._log() if line.get("step") == step)
        return float(sum(seconds for seconds in found if isinstance(seconds, int | float)))

    def _append(self, **fields: Any) -> None:
        with appending(self.path / "attempts.jsonl") as sink:
            sink.write(json.dumps({"at": time.time(), **fields}).encode() + b"\n")

    def _log(self) -> list[dict[str, Any]]:
        """Return the log of attempts without damaged lines: it only serves statistics."""
        path, found = self.path / "attempts.jsonl", []
        for line in whole_lines(path) if path.exists() else []:
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]


def new_run(runs_dir: Path, manifest: dict[str, Any]) -> RunDir:
    """Create a run directory with its manifest, numbered after all existing runs."""
    began = datetime.now(UTC)
    path = runs_dir / f"{began:%Y-%m-%dT%H-%M-%S}"
    while path.exists():  # two runs began within one second
        path = path.with_name(path.name + "b")
    numbered = {"number": 1 + max((run.number for run in runs(runs_dir)), default=0), **manifest}
    write_atomically(path / MANIFEST, json.dumps(numbered, indent=1, default=str).encode() + b"\n")
    return RunDir(path)


def runs(runs_dir: Path) -> list[RunDir]:
    """Return all runs in the order in which they began.

    They are ordered by the number in the manifest, not by the date in the name: the run of a clock that was once ahead
    would stay the last one. Runs of versions that wrote no number come first, by name. A folder without a manifest is
    not a run.
    """
    folders = sorted(runs_dir.iterdir()) if runs_dir.is_dir() else []
    return sorted(
        (RunDir(folder) for folder in folders if (folder / MANIFEST).is_file()), key=lambda run: (run.number, run.id)
    )


def find_run(runs_dir: Path, id: str) -> RunDir:
    """Return a run by its id or its path.

    Raises:
        RunMismatch: There is no such run.
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


def delete_lines(path: Path, chosen: Callable[[bytes], bool]) -> int:
    """Delete lines from a file, and an unfinished last line of a killed run, without holding the file in memory.

    Args:
        path: The file; not touched if no line is deleted.
        chosen: Returns True for a line to delete, which it gets without its newline.

    Returns:
        The number of deleted lines.
    """
    with path.open("rb") as lines:
        deleted = {number for number, line in enumerate(lines) if not line.endswith(b"\n") or chosen(line[:-1])}
    if deleted:
        with path.open("rb") as lines:
            write_atomically(path, (line for number, line in enumerate(lines) if number not in deleted))
    return len(deleted)


def whole_lines(path: Path) -> list[bytes]:
    """Return the lines of a file, without an unfinished last line of a killed run.

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
    """Open a file to append lines, after cutting off an unfinished last line of a killed run.

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
