"""Time that a test moves."""

from __future__ import annotations


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s
