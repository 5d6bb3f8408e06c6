"""A queue in which turns go round by key, counted in draws, so that no key's load is another key's wait."""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class Keyed(Protocol):
    """An entry of the queue."""

    @property
    def key(self) -> str | None:
        """Whose it is; callers without an API key are one key."""
        ...


Entry = TypeVar("Entry", bound=Keyed)


class FairQueue(Generic[Entry]):
    """First in, first out within a key; between keys, the one that has had the fewest draws is next.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996): each key has a virtual time that moves on by the draws it was
    given. A key that begins to wait starts at the virtual time of the last entry served, so that it neither catches up
    on what it did not ask for nor waits for what others have queued.
    """

    def __init__(self) -> None:
        self._entries: dict[str | None, deque[Entry]] = {}
        self._virtual: dict[str | None, int] = {}
        self._served_at = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def waiting(self, key: str | None) -> int:
        """Return how many entries of a key wait."""
        return len(self._entries.get(key, ()))

    def push(self, entry: Entry) -> None:
        """Append an entry to its key's."""
        key = entry.key
        if key not in self._entries:
            self._entries[key] = deque()
            self._virtual[key] = max(self._virtual.get(key, 0), self._served_at)
        self._entries[key].append(entry)
        self._length += 1

    def head(self) -> Entry | None:
        """Return the entry whose turn it is; None where nobody waits."""
        return self._entries[self._next_key()][0] if self._entries else None

    def pop(self, draws: int) -> Entry:
        """Take the head out and charge its key with the draws it is given."""
        key = self._next_key()
        entry = self._entries[key][0]
        self._served_at = self._virtual[key]
        self._virtual[key] += draws
        self._remove(entry)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Take an entry out, wherever it stands; False where it is not in the queue."""
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
            self._served_at = 0
