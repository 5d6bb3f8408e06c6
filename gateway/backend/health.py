"""Passive health of one replica: its failures, and its ejection from the rotation.

A replica is ejected after failures in a row, or when its share of failures is far above the other replicas'. It is
passed over for a time that grows with each ejection in a row; then one probe (a draw of one token) decides whether it
returns. Terms and rules follow Envoy's outlier detection; ``gateway.backend.replicas`` applies them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from gateway.errors import (
    BackendError,
    BackendOverloaded,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    GatewayError,
    RequestContained,
)

FAILURES_IN_A_ROW = 3.0  # of races, for an ejection
_MAX_EJECTION_S = 30.0
_JITTER = 0.2  # a fleet ejected together must not come back together
_PENALTY_DRAWS = 4.0  # load of a recent failure: a replica that fails fast would seem idle
_PENALTY_HALF_LIFE_S = 5.0
_RATE_HALF_LIFE_S = 10.0
_RATE_LEAST_DRAWS = 10.0
_RATE_LEAST_SHARE = 0.3
_RATE_ABOVE_OTHERS = 0.3


class Fault(StrEnum):
    """Kinds of failure that are the server's own, mildest first."""

    OVERLOADED = "overloaded"  # transient: other clients' load
    TIMEOUT = "slow"  # a draw took far longer than usual, or did not end in time
    ERROR = "failing"  # an error of its own, or an answer that cannot be read
    HUNG = "hung"  # nothing is answered any more, not even a draw of one token
    UNREACHABLE = "unreachable"  # no connection, or it broke


# Added to the failures in a row for one failed race.
_WEIGHTS = {Fault.OVERLOADED: 0.5, Fault.TIMEOUT: 1.0, Fault.ERROR: 1.0}
_AT_ONCE = frozenset({Fault.HUNG, Fault.UNREACHABLE})
_SEVERITY = list(Fault)


def fault_of(error: GatewayError) -> Fault | None:
    """Return the kind of server failure that an error stands for; None if the server is not at fault."""
    match error:
        case BackendRejected():
            return None
        case BackendUnreachable() | RequestContained():
            return Fault.UNREACHABLE
        case BackendOverloaded():
            return Fault.OVERLOADED
        case BackendTimeout():
            return Fault.TIMEOUT
        case BackendError():
            return Fault.ERROR
    return None


@dataclass(frozen=True, slots=True)
class Ejection:
    """A replica's time out of the rotation, on the health's clock.

    Attributes:
        confirmed: A probe failed, too: callers' requests alone must not make the gateway unready.
    """

    fault: Fault
    reason: str
    at_s: float
    until_s: float
    confirmed: bool


class Health:
    """Counts one replica's successes and failures.

    Args:
        base_s: Length of the first ejection; 0 never ejects.
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, base_s: float, clock: Callable[[], float]) -> None:
        self._base_s = base_s
        self._clock = clock
        self.ejection: Ejection | None = None
        self.answered_at_s: float | None = None
        self.broke_at_s: float | None = None
        self._ejections = 0
        self._in_a_row = 0.0
        self._last_race: object = None
        self._on_probation = False
        self._penalty = _Decaying(_PENALTY_HALF_LIFE_S)
        self._successes = _Decaying(_RATE_HALF_LIFE_S)
        self._failures = _Decaying(_RATE_HALF_LIFE_S)

    @property
    def ejected(self) -> bool:
        return self.ejection is not None

    @property
    def probe_due(self) -> bool:
        """True once an ejection's time is over, so that a probe may decide."""
        return self.ejection is not None and self._clock() >= self.ejection.until_s

    @property
    def trusted(self) -> bool:
        """True if the replica answered since it last broke a connection, or never broke one."""
        return self.broke_at_s is None or (self.answered_at_s is not None and self.answered_at_s > self.broke_at_s)

    @property
    def penalty_draws(self) -> int:
        """The load that recent failures count for, in draws."""
        return round(self._penalty.value(self._clock()))

    @property
    def severity(self) -> int:
        """The severity of the ejection; among ejected replicas the least severe is tried first."""
        return -1 if self.ejection is None else _SEVERITY.index(self.ejection.fault)

    def rate(self) -> tuple[float, float]:
        """Return the recent share of failures, and the recent number of draws that it is computed from."""
        now = self._clock()
        failures = self._failures.value(now)
        draws = failures + self._successes.value(now)
        return (failures / draws if draws else 0.0), draws

    def succeeded(self, started_s: float) -> None:
        """Count a draw that was answered. One that began after the ejection ends the ejection."""
        now = self._clock()
        self.answered_at_s = now
        self._in_a_row, self._last_race = 0.0, None
        self._successes.add(1.0, now)
        if self.ejection is not None and started_s >= self.ejection.at_s:
            self.readmit()
        elif self._on_probation and self.ejection is None:
            self._on_probation = False
            self._ejections = 0

    def failed(self, fault: Fault, race: object = None) -> None:
        """Count a failure. Several failed draws of one race count once among those in a row."""
        now = self._clock()
        if fault is Fault.UNREACHABLE:
            self.broke_at_s = now
        self._failures.add(1.0, now)
        self._penalty.add(_PENALTY_DRAWS, now)
        if race is None or race is not self._last_race:
            self._in_a_row += _WEIGHTS.get(fault, 1.0)
        self._last_race = race

    def suspicious(self, fault: Fault, others_share: float) -> bool:
        """Return whether the failure just counted is reason enough to eject.

        Args:
            fault: The failure's kind.
            others_share: The other replicas' share of failures.
        """
        if self._base_s <= 0 or self.ejected:
            return False
        if fault in _AT_ONCE or self._on_probation or self._in_a_row >= FAILURES_IN_A_ROW:
            return True
        share, draws = self.rate()
        return draws >= _RATE_LEAST_DRAWS and share >= max(_RATE_LEAST_SHARE, others_share + _RATE_ABOVE_OTHERS)

    def eject(self, fault: Fault, reason: str, *, confirmed: bool = False) -> None:
        """Take the replica out of the rotation; each ejection in a row is longer than the one before."""
        now = self._clock()
        if fault is not Fault.OVERLOADED:
            self._ejections += 1
        length_s = min(self._base_s * max(1, self._ejections), _MAX_EJECTION_S)
        length_s *= random.uniform(1 - _JITTER, 1 + _JITTER)
        self.ejection = Ejection(fault, reason, now, now + length_s, confirmed or fault in _AT_ONCE)

    def readmit(self) -> None:
        """Put the replica back, on probation: until its next answer one failure ejects it again."""
        self.ejection = None
        self._in_a_row, self._last_race = 0.0, None
        self._on_probation = True
        self.answered_at_s = self._clock()
        self._penalty = _Decaying(_PENALTY_HALF_LIFE_S)
        self._failures = _Decaying(_RATE_HALF_LIFE_S)


class _Decaying:
    """A sum in which every entry loses half of its weight each half-life."""

    __slots__ = ("_at_s", "_half_life_s", "_value")

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._value = 0.0
        self._at_s = 0.0

    def value(self, now_s: float) -> float:
        return self._value * 0.5 ** ((now_s - self._at_s) / self._half_life_s) if self._value else 0.0

    def add(self, amount: float, now_s: float) -> None:
        self._value = self.value(now_s) + amount
        self._at_s = now_s
