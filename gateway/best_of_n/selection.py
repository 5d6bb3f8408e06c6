"""Select the winners of a race, or the error to report if no candidate finished."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.errors import (
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    CallerError,
    DeadlineExceeded,
    GatewayError,
    RequestContained,
)
from gateway.types import Candidate, Selection, Unusable

# If every candidate failed, the caller gets the first of these errors that occurred: the most helpful one.
_MOST_INFORMATIVE = (
    CallerError,
    BackendRejected,
    RequestContained,
    BackendOverloaded,
    BackendTimeout,
    BackendFailed,
    BackendProtocolError,
    BackendUnreachable,
)


def select(candidates: Sequence[Candidate], n_returned: int) -> tuple[list[Candidate], Selection]:
    """Return the winners, best first, and why they won.

    Only the most usable answers compete: those that fulfil the request; if there are none, those that max_tokens cut;
    then the rest. Among them the highest reward wins, and the lower index breaks ties. With fewer than two rewards
    there is nothing to compare: the first answer is returned, flagged as a fallback so that it never trains.
    """
    finished = [candidate for candidate in candidates if candidate.answer is not None]
    best = min(map(_usability, finished))
    competing = [candidate for candidate in finished if _usability(candidate) == best]
    if len(competing) == 1:
        return competing, Selection.SINGLE
    if sum(candidate.reward is not None for candidate in competing) < 2:
        return competing[:n_returned], Selection.FALLBACK
    ranked = sorted(competing, key=lambda c: (-c.reward if c.reward is not None else math.inf, c.index))
    return ranked[:n_returned], Selection.SCORED


def _usability(candidate: Candidate) -> int:
    """Return 0 for an answer as requested, 1 for one cut by max_tokens, 2 for an unusable one."""
    if candidate.unusable is None:
        return 0
    return 1 if candidate.unusable is Unusable.CUT else 2


def most_informative_error(candidates: Sequence[Candidate]) -> GatewayError:
    """Return the error that helps the caller of a race without an answer most; ``DeadlineExceeded`` if none failed."""
    errors = [candidate.error for candidate in candidates if candidate.error is not None]
    for kind in _MOST_INFORMATIVE:
        for error in errors:
            if isinstance(error, kind):
                return error
    return DeadlineExceeded("no candidate finished before the deadline")
