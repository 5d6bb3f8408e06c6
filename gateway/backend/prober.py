"""Probes: draws of one token of our own, for replicas that are ejected or silent.

A probe decides whether an ejected replica may return to the rotation once its time is over, and whether a silent one
hangs (its health check succeeds, but no draw is answered). Callers' requests must not have to find that out.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from gateway.backend.health import Fault, fault_of
from gateway.backend.replicas import Replica, Replicas
from gateway.errors import BackendRejected, GatewayError
from gateway.single_flight import KeyedTasks

_LEAST_WAIT_S = 5.0
_PATIENCE = 4.0  # times longer than after an ejection: a replica in rotation may only be busy
_GRACE_S = 1.0  # a silent replica may only be a moment late

Unanswered = dict[str, contextvars.Context]
"""The logging context of each request, by the request's fingerprint."""


@dataclass(eq=False)
class Prober:
    """Probes replicas, each by one draw at a time.

    Attributes:
        draw: Draws one token from a replica.
        usual_s: Returns after how long a draw is overdue; a probe waits longer.
        on_hung: Called with a replica that hangs and the requests that it has left unanswered.
    """

    replicas: Replicas
    draw: Callable[[Replica], Awaitable[object]]
    usual_s: Callable[[], float]
    on_hung: Callable[[Replica, Unanswered], None]
    _probes: KeyedTasks[Replica] = field(default_factory=KeyedTasks)
    _unanswered: dict[Replica, Unanswered] = field(default_factory=dict)

    def tend(self) -> None:
        """Probe the ejected replicas whose time is over."""
        for replica in self.replicas.all:
            if replica.health.probe_due:
                self.probe(replica)

    def suspect(self, replica: Replica, request: str) -> None:
        """Probe a replica that leaves a request unanswered for longer than usual."""
        self._unanswered.setdefault(replica, {}).setdefault(request, contextvars.copy_context())
        self.probe(replica)

    def answered(self, request: str) -> None:
        """Suspect a request no longer."""
        for requests in self._unanswered.values():
            requests.pop(request, None)

    @property
    def idle(self) -> bool:
        return not self._unanswered

    def probe(self, replica: Replica) -> None:
        """Begin a probe, unless one is running."""
        self._probes.start(replica, partial(self._probe, replica))

    async def aclose(self) -> None:
        await self._probes.aclose()

    async def _probe(self, replica: Replica) -> None:
        started_s = self.replicas.clock()
        wait_s = max(_LEAST_WAIT_S, self.usual_s())
        if not replica.health.ejected:
            wait_s *= _PATIENCE
            await asyncio.sleep(_GRACE_S)
            if self._answered_since(replica, started_s):
                self._unanswered.pop(replica, None)
                return
        started_s = self.replicas.clock()
        timed_out = False
        try:
            async with asyncio.timeout(wait_s):
                await self.draw(replica)
        except TimeoutError:
            timed_out = True
        except BackendRejected:
            pass  # a refusal is an answer
        except GatewayError as error:
            self._failed(replica, fault_of(error) or Fault.ERROR, error.message)
            return
        unanswered = self._unanswered.pop(replica, {})
        if not timed_out:
            if replica.health.ejected:
                self.replicas.readmit(replica)
            else:
                replica.health.answered_at_s = self.replicas.clock()
        elif not self._answered_since(replica, started_s):
            reason = f"it hangs: a draw of one token was not answered within {wait_s:g} s"
            self.replicas.eject(replica, Fault.HUNG, reason, confirmed=True)
            self.on_hung(replica, unanswered)
        elif replica.health.ejection is not None:  # busy: it answers others
            self._failed(replica, Fault.TIMEOUT, f"a draw of one token took longer than {wait_s:g} s")

    def _answered_since(self, replica: Replica, since_s: float) -> bool:
        answered_at_s = replica.health.answered_at_s
        return answered_at_s is not None and answered_at_s >= since_s

    def _failed(self, replica: Replica, fault: Fault, reason: str) -> None:
        self._unanswered.pop(replica, None)
        if replica.health.ejected:
            self.replicas.eject(replica, fault, reason, confirmed=True)
        else:
            self.replicas.failed(replica, fault, reason)
