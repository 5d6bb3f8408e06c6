"""Which requests go wrong, for every stub."""

from __future__ import annotations

import random
from typing import Protocol

from aiohttp import web


class FaultKnobs(Protocol):
    """The selectors that every stub has."""

    fault_next: int
    fault_probability: float


class Picker:
    """Says of each request whether a fault strikes it. The same requests meet the same faults in every run."""

    def __init__(self) -> None:
        self._rng = random.Random(0)

    def picks(self, knobs: FaultKnobs) -> bool:
        """Whether the next request is struck."""
        if knobs.fault_next > 0:
            knobs.fault_next -= 1
            return True
        return knobs.fault_probability > 0 and self._rng.random() < knobs.fault_probability


def hang_up(http: web.BaseRequest) -> None:
    """Close the connection once what was written is sent."""
    if http.transport is not None:
        http.transport.close()
