"""What each worker of one gateway holds and wants, in memory that all of them share."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.best_of_n.water_level import Demand, merged

FOLDER_VARIABLE = "RATCHET_PERMITS_DIR"
"""Where the supervisor of several workers tells each of them the ledger's folder."""

_ENTRY = struct.Struct("=6d")
_STALE_S = 5.0


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The other workers together.

    ``capacity``: permits that they may give out. ``held``: permits given out. ``waiting``: permits that the next of
    their waiting requests cannot do without; 0 where none waits. ``demand``: what their races want.
    """

    capacity: float = 0.0
    held: float = 0.0
    waiting: float = 0.0
    demand: Demand = field(default_factory=dict)


class Ledger:
    """One small file a worker, mapped into the memory of all; each writes its own and reads the others'.

    The place of a worker that died is taken by the one that replaces it. What was not written for five seconds does not
    count. There is no lock: who takes permits writes so first, then looks whether all fit, and takes fewer if not.

    Args:
        folder: Of this gateway alone.
        workers: How many there are.
        clock: Monotonic seconds, the same in all workers.
    """

    def __init__(self, folder: Path, workers: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._own: mmap.mmap | None = None
        self._others: list[mmap.mmap] = []
        self._files = [os.open(folder / f"permits-{index}", os.O_RDWR | os.O_CREAT, 0o600) for index in range(workers)]
        for file in self._files:
            os.ftruncate(file, _ENTRY.size)
            entry = mmap.mmap(file, _ENTRY.size)
            if self._own is None and _locked(file):
                self._own = entry
            else:
                self._others.append(entry)
        self.write(capacity=0, held=0, waiting=0, races=0.0, wanted=0.0)

    def write(self, *, capacity: int, held: int, waiting: int, races: float, wanted: float) -> None:
        """Tell the others what this worker may give out, holds, waits for and wants; see ``Neighbours``."""
        if self._own is not None:
            _ENTRY.pack_into(self._own, 0, self._clock(), capacity, held, waiting, races, wanted)

    def neighbours(self) -> Neighbours:
        """Return what the other workers have written."""
        oldest_s = self._clock() - _STALE_S
        capacity = held = waiting = 0.0
        demand: Demand = {}
        for entry in self._others:
            at_s, its_capacity, its_held, its_waiting, races, wanted = _ENTRY.unpack_from(entry)
            if at_s < oldest_s:
                continue
            capacity += its_capacity
            held += its_held
            waiting += its_waiting
            if races > 0:
                demand = merged(demand, {max(1, round(wanted / races)): races})
        return Neighbours(capacity, held, waiting, demand)

    def close(self) -> None:
        """Leave the worker's place."""
        self.write(capacity=0, held=0, waiting=0, races=0.0, wanted=0.0)
        for file in self._files:
            os.close(file)
        self._own, self._others, self._files = None, [], []


def _locked(file: int) -> bool:
    """Lock a file for as long as this process lives; False where another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
