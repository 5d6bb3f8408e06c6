"""Cut an answer at its first stop string, whole or streamed, so that no part of a stop string is shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from gateway.types import JsonObject


class StopTrimmer:
    """Holds text back while it could begin a stop string.

    The stop string that is complete first ends the answer, as it would have ended generation; of two complete at once,
    the longer. The result does not depend on how the text is divided into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._tokens: deque[tuple[int, JsonObject]] = deque()
        self._shown_chars = 0
        self._token_chars = 0
        self.stopped = False

    def feed(self, text: str, tokens: Sequence[JsonObject] = ()) -> tuple[str, list[JsonObject]]:
        """Take the next piece and its tokens' logprob entries; return what may be shown of both."""
        if not self._stops:
            return text, list(tokens)
        if self.stopped:
            return "", []
        pending = self._held + text
        end = self._first_stop(pending)
        self.stopped = end is not None
        if end is None:
            end = len(pending) - self._undecided(pending)
        self._held = "" if self.stopped else pending[end:]
        self._shown_chars += end
        for token in tokens:
            self._tokens.append((self._token_chars, token))
            self._token_chars += len(token.get("token", ""))
        return pending[:end], self._shown_tokens()

    def finish(self) -> tuple[str, list[JsonObject]]:
        """Return the text held back, and its tokens, when no more text follows."""
        text, tokens = self._held, [token for _, token in self._tokens]
        self._held = ""
        self._tokens.clear()
        return ("", []) if self.stopped else (text, tokens)

    def _first_stop(self, text: str) -> int | None:
        """Return where to cut: the start of the match that ends first."""
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _undecided(self, text: str) -> int:
        """Return the length of the longest end of ``text`` with which some stop string begins."""
        for length in range(min(len(text), max(map(len, self._stops)) - 1), 0, -1):
            ending = text[-length:]
            if any(stop.startswith(ending) for stop in self._stops):
                return length
        return 0

    def _shown_tokens(self) -> list[JsonObject]:
        shown = []
        while self._tokens and self._tokens[0][0] < self._shown_chars:
            shown.append(self._tokens.popleft()[1])
        return shown
