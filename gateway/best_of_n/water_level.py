"""Water-filling: the largest number of permits that every race can have where some races want fewer."""

from __future__ import annotations

import math
from collections.abc import Mapping

_CLOSE = 0.25

Demand = Mapping[int, float]
"""The number of races by the permits they want. A race that has given back half of its permits counts as a half."""


def water_level(capacity: float, demand: Demand) -> float:
    """Return the level at which ``min(want, level)`` over all races adds up to the capacity; infinity if all fit.

    Max-min fairness: a race that wants less than the level gets what it wants; the others share the rest evenly.
    """
    left = capacity
    races = sum(demand.values())
    for want in sorted(demand):
        if want * races > left:
            return max(left, 0.0) / races
        left -= want * demand[want]
        races -= demand[want]
    return math.inf


def merged(one: Demand, other: Demand) -> Demand:
    if not other:
        return one
    return {want: one.get(want, 0.0) + other.get(want, 0.0) for want in {*one, *other}}


class WholeShares:
    """Turns a level into whole numbers of permits, race by race.

    Fractions add up: at a level of 2.4 two races in five get 3, the others 2. A level close to a whole number counts as
    that number, because the level changes with every race that comes or goes, and N should not.
    """

    def __init__(self) -> None:
        self._fractions = 0.0

    def least(self, level: float) -> int:
        """Return the permits that every race gets."""
        return int(level + _CLOSE)

    def one_more(self, level: float) -> bool:
        """Return True if the next race gets one permit more than ``least``. Call this once for each race."""
        fraction = level - self.least(level)
        if fraction < _CLOSE:
            return False
        self._fractions += fraction
        due = self._fractions >= 1.0
        self._fractions -= due
        return due
