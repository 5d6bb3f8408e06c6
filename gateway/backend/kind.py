"""The kind of a backend's servers (TGI, vLLM, llama.cpp) and its flavour: set by the operator, or asked of them."""

from __future__ import annotations

import asyncio

import structlog

from gateway.backend.flavours import Flavour
from gateway.backend.identify import Identity, contradiction, flavour_of
from gateway.backend.replicas import Replica
from gateway.single_flight import SingleFlight

_WAIT_S = 1.0
_ASK_AGAIN_S = 2.0
_IDENTITY_HOLDS_S = 30.0

log = structlog.get_logger()


class Kind:
    """Identifies replicas; with ``GATEWAY_BACKEND__KIND`` auto the first identity found decides the flavour of all."""

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self.flavour: Flavour = flavour_of(setting)
        self._decided = setting != "auto"
        self._asked_at_s: float | None = None
        self._asking: SingleFlight[Identity | None] = SingleFlight()

    async def decide(self, replica: Replica) -> None:
        """Ask the replica for its kind if that is open; wait for the answer no longer than a moment."""
        if self._decided:
            return
        if not self._asking.running:
            now_s = asyncio.get_running_loop().time()
            if self._asked_at_s is not None and now_s - self._asked_at_s < _ASK_AGAIN_S:
                return
            self._asked_at_s = now_s
        await asyncio.wait([self._asking.start(lambda: self.identify(replica))], timeout=_WAIT_S)

    async def identify(self, replica: Replica) -> Identity | None:
        """Return what the replica is; an answer holds for 30 s."""
        now_s = asyncio.get_running_loop().time()
        if replica.identity is not None and now_s - replica.identified_at_s < _IDENTITY_HOLDS_S:
            return replica.identity
        replica.identified_at_s = now_s
        found = replica.identity = await replica.server.identify()
        if found is not None and not self._decided:
            self._decided = True
            self.flavour = flavour_of(found.kind)
            log.info("backend_identified", replica=replica.name, kind=found.kind, server=found.name)
        return found

    async def identify_now_and_then(self, replica: Replica) -> Identity | None:
        """Identify the replica, unless that was tried within the last 30 s."""
        now_s = asyncio.get_running_loop().time()
        return await self.identify(replica) if now_s - replica.identified_at_s >= _IDENTITY_HOLDS_S else None

    def mismatch(self, replica: Replica) -> str | None:
        """Return in words how a replica differs from the setting, or from the other replicas."""
        if replica.identity is None:
            return None
        wrong = contradiction(self._setting, replica.identity)
        if wrong is None and self._setting == "auto" and flavour_of(replica.identity.kind) is not self.flavour:
            return f"it is {replica.identity.name}, and other replicas are of another kind: one policy needs one kind"
        return wrong

    def close(self) -> None:
        self._asking.cancel()
