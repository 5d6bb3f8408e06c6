"""The usual duration of draws, learned from those that finished; a draw far beyond it is overdue."""

from __future__ import annotations

from collections import deque

_SAMPLES = 200
_LEAST_SAMPLES = 20
_RECOMPUTE_EVERY = 16
_QUANTILE = 0.95
_FACTOR = 2.0
_LEAST_S = 0.5
COLD_S = 5.0  # a draw is overdue after this while there are too few samples


class UsualTime:
    """Quantiles of a draw's duration, by its ``max_tokens``.

    Draws are grouped by the power of two of ``max_tokens``, for a draw of 4,000 tokens takes longer than one of 16.
    A group with too few samples is judged by the time per token of all draws.
    """

    def __init__(self) -> None:
        self._groups: dict[int, _Quantile] = {}
        self._per_token = _Quantile()

    def add(self, max_tokens: int | None, seconds: float, tokens: int) -> None:
        """Learn from a finished draw."""
        self._group(max_tokens).add(seconds)
        self._per_token.add(seconds / max(1, tokens))

    def overdue_s(self, max_tokens: int | None) -> float:
        """Return after how many seconds a draw is overdue."""
        usual = self._group(max_tokens).value
        if usual is None and max_tokens is not None and self._per_token.value is not None:
            usual = self._per_token.value * max_tokens
        return COLD_S if usual is None else max(_LEAST_S, _FACTOR * usual)

    def _group(self, max_tokens: int | None) -> _Quantile:
        key = 0 if max_tokens is None else max_tokens.bit_length()
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Quantile()
        return group


class _Quantile:
    """The quantile of the last samples; None while there are too few."""

    __slots__ = ("_added", "_samples", "value")

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._added = 0
        self.value: float | None = None

    def add(self, sample: float) -> None:
        self._samples.append(sample)
        self._added += 1
        if self._added == _LEAST_SAMPLES or (self._added > _LEAST_SAMPLES and self._added % _RECOMPUTE_EVERY == 0):
            ordered = sorted(self._samples)
            self.value = ordered[min(len(ordered) - 1, int(_QUANTILE * len(ordered)))]
