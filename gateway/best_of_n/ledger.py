"""The permits that each worker of one gateway holds and wants, in memory that all workers share."""

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
"""The environment variable by which the supervisor tells its workers the ledger's folder."""

_ENTRY = struct.Struct("=6d")
_STALE_S = 5.0


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The other workers' sums.

    ``capacity``: permits that they may give out. ``held``: permits given out. ``waiting``: the fewest permits with
    which the next waiting request of each can begin; 0 if none waits. ``demand``: the permits that their races want.
    """

    capacity: float = 0.0
    held: float = 0.0
    waiting: float = 0.0
    demand: Demand = field(default_factory=dict)


class Ledger:
    """One small file for each worker, mapped into the memory of all: each writes its own and reads the others'.

    A worker that replaces a dead one takes over its file. An entry that was not written for five seconds does not
    count. There is no lock: a worker that takes permits writes that first, then checks that all fit, and gives them
    back if not.

    Args:
        folder: Used by this gateway alone.
        workers: Number of workers.
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
        """Publish this worker's numbers; see ``Neighbours``. ``races``: how many want ``wanted`` permits together."""
        if self._own is not None:
            _ENTRY.pack_into(self._own, 0, self._clock(), capacity, held, waiting, races, wanted)

    def neighbours(self) -> Neighbours:
        """Return the sums of the other workers' entries."""
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
        """Withdraw this worker's numbers and give up its file."""
        self.write(capacity=0, held=0, waiting=0, races=0.0, wanted=0.0)
        for file in self._files:
            os.close(file)
        self._own, self._others, self._files = None, [], []


def _locked(file: int) -> bool:
    """Lock a file for as long as this process lives; return False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
