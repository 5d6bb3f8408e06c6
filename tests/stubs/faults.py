"""The choice of the requests that fail, for every stub."""

from __future__ import annotations

import random
from typing import Protocol

from aiohttp import web


class FaultKnobs(Protocol):
    """The selectors that every stub has."""

    fault_next: int
    fault_probability: float


class Picker:
    """Decides for each request whether it fails. The same requests meet the same faults in every run."""

    def __init__(self) -> None:
        self._rng = random.Random(0)

    def picks(self, knobs: FaultKnobs) -> bool:
        """Return whether the next request fails."""
        if knobs.fault_next > 0:
            knobs.fault_next -= 1
            return True
        return knobs.fault_probability > 0 and self._rng.random() < knobs.fault_probability


def hang_up(http: web.BaseRequest) -> None:
    """Close the connection once everything written is sent."""
    if http.transport is not None:
        http.transport.close()
