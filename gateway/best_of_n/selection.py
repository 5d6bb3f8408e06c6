"""Who won, and why; and what to say when nobody did."""

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

# When every candidate failed, the error that tells the caller most comes first.
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
    """The winners, best first, and why they won.

    Only the most usable answers compete: those that keep the request's contract; where none does, those that
    max_tokens cut; then the rest. Among them the highest reward wins and the lower index breaks ties. With fewer than
    two rewards there is nothing to compare: the first answer is taken and flagged, so that it never passes for a win.
    """
    finished = [candidate for candidate in candidates if candidate.answer is not None]
    best = min(map(_class, finished))
    competing = [candidate for candidate in finished if _class(candidate) == best]
    if len(competing) == 1:
        return competing, Selection.SINGLE
    if sum(candidate.reward is not None for candidate in competing) < 2:
        return competing[:n_returned], Selection.FALLBACK
    ranked = sorted(competing, key=lambda c: (-c.reward if c.reward is not None else math.inf, c.index))
    return ranked[:n_returned], Selection.SCORED


def _class(candidate: Candidate) -> int:
    """Rank an answer by its use: 0 as asked, 1 cut by max_tokens, 2 of no use."""
    if candidate.unusable is None:
        return 0
    return 1 if candidate.unusable is Unusable.CUT else 2


def most_informative_error(candidates: Sequence[Candidate]) -> GatewayError:
    """Of a race without an answer, the error that helps its caller most; none failed means none was in time."""
    errors = [candidate.error for candidate in candidates if candidate.error is not None]
    for kind in _MOST_INFORMATIVE:
        for error in errors:
            if isinstance(error, kind):
                return error
    return DeadlineExceeded("no candidate finished before the deadline")
