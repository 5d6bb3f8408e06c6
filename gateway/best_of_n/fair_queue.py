"""A fair queue: keys take turns, counted in permits, so that one key's load does not make another key wait."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Keyed(Protocol):
    """An entry of the queue. Callers without an API key share the key None."""

    @property
    def key(self) -> str | None: ...


Entry = TypeVar("Entry", bound=Keyed)


class FairQueue(Generic[Entry]):
    """First in, first out within a key; between keys, the key that was given the fewest permits is next.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996): each key has a virtual time that advances by the permits it
    is given. A key that begins to wait starts at the virtual time of the last entry served, so that it neither catches
    up for the time it was idle nor waits for all that other keys have queued.
    """

    def __init__(self) -> None:
        self._entries: dict[str | None, deque[Entry]] = {}
        self._virtual: dict[str | None, int] = {}
        self._served_at = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def waiting(self, key: str | None) -> int:
        """Return the number of entries that a key has in the queue."""
        return len(self._entries.get(key, ()))

    def push(self, entry: Entry) -> None:
        key = entry.key
        if key not in self._entries:
            self._entries[key] = deque()
            self._virtual[key] = max(self._virtual.get(key, 0), self._served_at)
        self._entries[key].append(entry)
        self._length += 1

    def head(self) -> Entry | None:
        """Return the entry whose turn it is; None if the queue is empty."""
        return self._entries[self._next_key()][0] if self._entries else None

    def pop(self, permits: int) -> Entry:
        """Remove and return the head, and charge its key with the permits it is given."""
        key = self._next_key()
        entry = self._entries[key][0]
        self._served_at = self._virtual[key]
        self._virtual[key] += permits
        self._remove(entry)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Remove an entry from anywhere in the queue; return False if it is not there."""
        if entry not in self._entries.get(entry.key, ()):
            return False
        self._remove(entry)
        return True

    def newest_of_longest(self) -> Entry | None:
        """Return the newest entry of the key with the most entries."""
        longest = max(self._entries.values(), key=len, default=None)
        return longest[-1] if longest else None

    def _next_key(self) -> str | None:
        return min(self._entries, key=self._virtual.__getitem__)

    def _remove(self, entry: Entry) -> None:
        entries = self._entries[entry.key]
        entries.remove(entry)
        self._length -= 1
        if not entries:
            del self._entries[entry.key]
        if not self._entries:
            self._virtual.clear()
