"""The replicas of one backend: their load and health, and the choice of one for each race."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import structlog

from gateway.backend.flavours import Catalogue, Flavour
from gateway.backend.health import Fault, Health, fault_of
from gateway.backend.hub import HubClient
from gateway.backend.identify import Identity
from gateway.backend.server import Server
from gateway.errors import AdapterMissing, BackendError, BackendFailed, BackendUnreachable, RequestContained
from gateway.single_flight import SingleFlight

# Shorter than any restart (llama.cpp with a small model: 0.9 s). A restart that breaks no connection, because none is
# in use, is seen as silence of this length.
_RESTART_S = 0.5
_ASK_ADAPTER_AGAIN_S = 5.0
_ANY: frozenset[str] = frozenset()

log = structlog.get_logger()


class Replica:
    """One server: its clients, its load and its health.

    Attributes:
        name: Host and port, safe to log; the URL may hold a password.
        catalogue: What the server listed last; None where it must be asked again: llama.cpp knows adapters by
            numbers, which may change at a restart.
        identity: Its kind and limits.
        shows_tools: Its chat template was found to have a place for tools.
    """

    def __init__(self, server: Server, hub: HubClient, health: Health, clock: Callable[[], float]) -> None:
        self.server = server
        self.hub = hub
        self.name = server.name
        self.health = health
        self.catalogue: Catalogue | None = None
        self.identity: Identity | None = None
        self.identified_at_s = -math.inf
        self.shows_tools = False
        self.in_flight = 0
        self.chosen = 0
        self._clock = clock
        self._answered_at_s = 0.0
        self._listing: SingleFlight[Catalogue] = SingleFlight(self._listed)
        self._missing: dict[str, float] = {}

    @property
    def load(self) -> int:
        """Return the draws in flight, plus the load that recent failures count for."""
        return self.in_flight + self.health.penalty_draws

    def lacks(self, adapter: str | None) -> bool:
        """Return whether the replica was found without the adapter in the last few seconds."""
        found_at_s = None if adapter is None else self._missing.get(adapter)
        return found_at_s is not None and self._clock() - found_at_s < _ASK_ADAPTER_AGAIN_S

    def missing(self) -> list[str]:
        return sorted(self._missing)

    def set_missing(self, adapter: str, missing: bool, *, until_changed: bool = False) -> None:
        """Remember whether it serves the adapter: for some seconds, or until this is called again."""
        if missing:
            self._missing[adapter] = math.inf if until_changed else self._clock()
        else:
            self._missing.pop(adapter, None)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Count one draw, and forget the catalogue where the server may have restarted."""
        if self.in_flight == 0 and self._clock() - self._answered_at_s >= _RESTART_S:
            self.catalogue = None  # no draw ran that a restart would have broken
        self.in_flight += 1
        try:
            yield
            self._answered_at_s = self._clock()
        except (BackendUnreachable, BackendFailed, RequestContained):
            self.catalogue = None  # another server may come back, or an adapter may be gone
            raise
        finally:
            self.in_flight -= 1

    async def list_models(self, flavour: Flavour) -> Catalogue:
        """Ask the server what it serves, and remember it; concurrent callers share one call."""
        return await self._listing.result(partial(self.server.list_models, flavour))

    def _listed(self, listing: asyncio.Task[Catalogue]) -> None:
        if not listing.cancelled() and listing.exception() is None:
            self.catalogue = listing.result()


class Replicas:
    """All replicas, and the choice among them.

    ``unhealthy_s`` is the length of a first ejection. ``places`` returns how many draws a replica takes; load is
    compared relative to it.
    """

    def __init__(
        self,
        urls: Sequence[str],
        connect: Callable[[str], tuple[Server, HubClient]],
        unhealthy_s: float,
        clock: Callable[[], float] = time.monotonic,
        places: Callable[[Replica], int] = lambda _: 1,
    ) -> None:
        self._places = places
        self._connect = connect
        self._unhealthy_s = unhealthy_s
        self.clock = clock
        self._urls: tuple[str, ...] = ()
        self.all: tuple[Replica, ...] = ()
        self.follow(urls)
        self._choices = 0

    def follow(self, urls: Sequence[str]) -> None:
        """Have a replica for each URL; keep those that stay, and let those that go finish their draws."""
        if tuple(urls) == self._urls:
            return
        known = dict(zip(self._urls, self.all, strict=True))
        self._urls = tuple(urls)
        self.all = tuple(known.get(url) or self._replica(url) for url in urls)

    def _replica(self, url: str) -> Replica:
        server, hub = self._connect(url)
        return Replica(server, hub, Health(self._unhealthy_s, self.clock), self.clock)

    def relative_load(self, replica: Replica) -> float:
        return replica.load / self._places(replica)

    def choose(
        self,
        *,
        adapter: str | None = None,
        without: Collection[Replica] = (),
        only: frozenset[str] = _ANY,
        panic: bool = True,
    ) -> Replica | None:
        """Return the least loaded replica in rotation; of equals the one that was not chosen for the longest time.

        Args:
            adapter: The adapter that it must serve.
            without: Replicas to leave out.
            only: Names of the replicas to choose from; empty is all.
            panic: With none in rotation, choose the least sick one: a false alarm must not stop all service.
        """
        able = [
            replica
            for replica in self.all
            if replica not in without and (not only or replica.name in only) and not replica.lacks(adapter)
        ]
        chosen = min(
            (replica for replica in able if not replica.health.ejected),
            key=lambda replica: (self.relative_load(replica), replica.chosen),
            default=None,
        )
        if chosen is None and panic:
            chosen = min(able, key=_least_sick, default=None)
        if chosen is not None:
            # The race's draws count as load once they start; until then this sends the next race elsewhere.
            self._choices += 1
            chosen.chosen = self._choices
        return chosen

    @contextmanager
    def drawing(self, replica: Replica, race: object = None) -> Iterator[None]:
        """Count one draw of a race on a replica, as load and for its health."""
        started_s = self.clock()
        try:
            with replica.drawing():
                yield
            replica.health.succeeded(started_s)
        except AdapterMissing:
            raise  # it may serve everything else
        except BackendError as error:
            if (fault := fault_of(error)) is not None:
                reason = "it broke a connection" if isinstance(error, RequestContained) else error.message
                self.failed(replica, fault, reason, race)
            raise

    def failed(self, replica: Replica, fault: Fault, reason: str, race: object = None) -> None:
        """Count a failure of a replica; eject it where its failures are enough and enough other replicas are left."""
        health = replica.health
        health.failed(fault, race)
        if health.suspicious(fault, self._others_share(replica)) and self._may_eject(fault):
            self.eject(replica, fault, reason)

    def eject(self, replica: Replica, fault: Fault, reason: str, *, confirmed: bool = False) -> None:
        """Take a replica out of the rotation for a while."""
        again = replica.health.ejected
        replica.health.eject(fault, reason, confirmed=confirmed)
        if not again and (ejection := replica.health.ejection) is not None:
            log.warning(
                "backend_replica_ejected",
                replica=replica.name,
                fault=fault.value,
                reason=reason,
                for_s=round(ejection.until_s - ejection.at_s, 1),
            )

    def readmit(self, replica: Replica) -> None:
        """Put a replica back into the rotation."""
        if replica.health.ejected:
            log.info("backend_replica_readmitted", replica=replica.name)
        replica.health.readmit()

    def _others_share(self, replica: Replica) -> float:
        """Return the share of failed draws over all other replicas."""
        rates = [other.health.rate() for other in self.all if other is not replica]
        draws = sum(volume for _, volume in rates)
        return sum(share * volume for share, volume in rates) / draws if draws else 0.0

    def _may_eject(self, fault: Fault) -> bool:
        """Return whether one more may be ejected: at most half of those that still answer, but always one.

        One that is gone or hung serves nobody and is always ejected; with all ejected, the least sick one is used.
        """
        if fault in (Fault.UNREACHABLE, Fault.HUNG):
            return True
        ejected = sum(
            replica.health.ejection is not None and replica.health.ejection.fault not in (Fault.UNREACHABLE, Fault.HUNG)
            for replica in self.all
        )
        return ejected < max(1, len(self.all) // 2)


def _least_sick(replica: Replica) -> tuple[int, int, float, int]:
    ejection = replica.health.ejection
    until_s = 0.0 if ejection is None else ejection.until_s
    return replica.health.severity, replica.load, until_s, replica.chosen
