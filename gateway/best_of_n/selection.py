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
from gateway.types import Candidate, Selection

# When every candidate failed, the error that tells the caller most comes first.
_MOST_TELLING = (
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

    The highest reward wins and the lower index breaks ties. With fewer than two rewards among several answers there
    is nothing to compare: the first answer is taken and flagged, so that it can never pass for a win.
    """
    finished = [candidate for candidate in candidates if candidate.answer is not None]
    ranked = sorted(finished, key=lambda c: (-c.reward if c.reward is not None else math.inf, c.index))
    if len(finished) == 1:
        return finished, Selection.SINGLE
    if sum(candidate.reward is not None for candidate in finished) < 2:
        return finished[:n_returned], Selection.FALLBACK
    return ranked[:n_returned], Selection.SCORED


def most_telling(candidates: Sequence[Candidate]) -> GatewayError:
    """Of a race without an answer, the error that helps its caller most; none failed means none was in time."""
    errors = [candidate.error for candidate in candidates if candidate.error is not None]
    for kind in _MOST_TELLING:
        for error in errors:
            if isinstance(error, kind):
                return error
    return DeadlineExceeded("no candidate finished before the deadline")
