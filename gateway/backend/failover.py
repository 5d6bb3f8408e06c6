"""The replica that a draw begins at, and the ones that take over where it fails before anything reached the caller."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from gateway.backend.budget import Budget
from gateway.backend.containment import Containment
from gateway.backend.draws import TAKEOVERS
from gateway.backend.replicas import Replica, Replicas
from gateway.backend.route import Draw
from gateway.errors import (
    AdapterMissing,
    BackendError,
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendTimeout,
    BackendUnreachable,
    RequestContained,
)

# Another replica might answer after these. A refusal (422) would be the same there.
_MOVABLE = (BackendUnreachable, BackendFailed, BackendProtocolError, BackendTimeout, BackendOverloaded)
# These cost the fleet nothing, because nothing was drawn. Containment and ejection bound the draws that broke.
_FREE = (AdapterMissing, BackendOverloaded, BackendUnreachable)
_ANYWHERE: frozenset[str] = frozenset()

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(eq=False)
class Failover:
    """Chooses replicas for draws. A budget bounds retries to a fifth of the draws."""

    replicas: Replicas
    containment: Containment
    on_move: Callable[[str], None]
    _retries: Budget = field(default_factory=lambda: Budget(0.2, floor_per_s=2.0, burst=100.0))

    def first_choice(self, draw: Draw) -> tuple[Replica, bool]:
        """Return the replica that a draw begins at, and whether another one may take over.

        A contained request on trial goes to a server that it broke before, and to no other.

        Raises:
            RequestContained: The request may go nowhere.
            BackendUnreachable: There is no replica.
            AdapterMissing: No replica has the adapter.
        """
        self._retries.deposit()
        idle = self.containment.idle
        only = _ANYWHERE if idle else self.containment.admit(draw.fingerprint(self.containment))
        route, adapter = draw.route, draw.prompt.adapter
        chosen = route.replica
        if only:
            chosen = self.replicas.choose(adapter=adapter, only=only, panic=False)
            if chosen is None:
                raise RequestContained("this request broke two backend servers, and they are not back yet")
        elif chosen is None:
            chosen = route.replica = self.replicas.choose(adapter=adapter)
        elif chosen.health.ejected or chosen.lacks(adapter):
            chosen = route.replica = self.replicas.choose(adapter=adapter, panic=False) or chosen
        if not self.replicas.all:
            raise BackendUnreachable("no server has the backend's name", was_sent=False)
        if chosen is None:
            raise AdapterMissing(f"no replica of the backend has loaded the adapter {adapter}")
        return chosen, not only

    async def run(self, draw: Draw, replica: Replica, attempt: Callable[[Draw, Replica], Awaitable[T]]) -> T:
        """Return the result of the first attempt that succeeds, at this replica or the next ones.

        Raises:
            BackendError: No attempt succeeded; the last one's error.
        """
        while True:
            try:
                return await attempt(draw, replica)
            except BackendError as error:
                spare = self._spare(draw, replica, error)
                if spare is None:
                    raise
                replica = spare

    def _spare(self, draw: Draw, failed: Replica, error: BackendError) -> Replica | None:
        """Return another replica for a draw that failed; None if the error is final."""
        draw.tried.append(failed)
        if not isinstance(error, _MOVABLE):
            return None
        if not self.containment.idle:
            self.containment.check(draw.fingerprint(self.containment))
        if len(draw.tried) > TAKEOVERS and not isinstance(error, AdapterMissing):
            return None
        route, adapter = draw.route, draw.prompt.adapter
        reached = [one for one in (route.replica, route.hedge) if one is not None and one not in draw.tried]
        serving = [one for one in reached if not one.health.ejected and not one.lacks(adapter)]
        if serving:
            spare: Replica | None = serving[0]  # a race keeps to the replicas that it has reached
        else:
            spare = self.replicas.choose(adapter=adapter, without=draw.tried, panic=False)
        if spare is None:
            return None
        if not isinstance(error, _FREE) and not self._retries.withdraw():
            log.warning("backend_retry_budget_spent", broken=failed.name, reason=error.message)
            return None
        route.replica = spare
        self.on_move("retry")
        log.warning("backend_replica_replaced", broken=failed.name, by=spare.name, reason=error.message)
        return spare
