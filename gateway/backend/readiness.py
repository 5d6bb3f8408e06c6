"""Ask one replica how it is: its health check, its key, its kind, and what draws have shown of it."""

from __future__ import annotations

from gateway.backend.calls import Calls
from gateway.backend.health import Fault
from gateway.backend.replicas import Replica, Replicas
from gateway.errors import GatewayError


async def check_replica(replica: Replica, replicas: Replicas, calls: Calls) -> tuple[str | None, bool]:
    """Return what is wrong with a replica (None: nothing), and whether it serves all the same."""
    try:
        problem = await calls.health(replica)
        if problem is None:
            await calls.identify(replica)
            problem = calls.strangeness(replica)
    except GatewayError as error:
        replicas.failed(replica, Fault.UNREACHABLE, error.message)
        return error.message, False
    ejection = replica.health.ejection
    if problem is None and ejection is not None and ejection.fault is Fault.UNREACHABLE:
        replicas.readmit(replica)
        return None, True
    if problem is not None:
        return problem, False
    if ejection is None:
        return None, True
    left_s = max(0.0, ejection.until_s - replicas.clock())
    return f"{ejection.fault}: {ejection.reason}; out of rotation for {left_s:.0f} s more", not ejection.confirmed
