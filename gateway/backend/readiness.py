"""Readiness of a pool: each replica's health check, API key, kind, and the failures of its draws."""

from __future__ import annotations

import asyncio

from gateway.backend.health import Fault
from gateway.backend.kind import Kind
from gateway.backend.replicas import Replica, Replicas
from gateway.errors import GatewayError
from gateway.types import Readiness


async def check_replicas(replicas: Replicas, kind: Kind) -> Readiness:
    """Ask every replica; ready when at least one serves. ``detail`` names those with a problem."""
    everyone = replicas.all
    found = await asyncio.gather(*(_check(replica, replicas, kind) for replica in everyone))
    states = {replica.name: problem or "ok" for replica, (problem, _) in zip(everyone, found, strict=True)}
    detail = "; ".join(f"{name}: {state}" for name, state in states.items() if state != "ok")
    limits = {one.name: one.identity.limits for one in everyone if one.identity and one.identity.limits}
    facts = {"replicas": states} | ({"limits": limits} if limits else {})
    return Readiness(ready=any(serves for _, serves in found), detail=detail, facts=facts)


async def _check(replica: Replica, replicas: Replicas, kind: Kind) -> tuple[str | None, bool]:
    """Return the replica's problem (None: it has none), and whether it serves all the same."""
    try:
        problem = await replica.server.find_problem(kind.flavour)
        if problem is None:
            await kind.identify(replica)
            problem = kind.mismatch(replica)
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
