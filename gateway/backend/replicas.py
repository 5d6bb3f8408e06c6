"""The replicas of one backend: their load and health, and the choice of one for each race."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import structlog

from gateway.backend.flavours import Catalogue, Refusal
from gateway.backend.health import Fault, Health, fault_of
from gateway.backend.hub import HubClient
from gateway.backend.identify import Identity
from gateway.errors import AdapterMissing, BackendError, BackendFailed, BackendUnreachable, RequestContained

# Shorter than any restart (llama.cpp with a small model: 0.9 s): one that breaks no connection, because none is in
# use, is seen as silence of this length.
_RESTART_S = 0.5
_ASK_ADAPTER_AGAIN_S = 5.0
_NO_ONE: frozenset[str] = frozenset()

log = structlog.get_logger()


class Replica:
    """One backend server: its client, its load and its health.

    ``name`` is host and port, which may be told; the URL may hold a password. ``catalogue`` is what it serves, None
    where it has to be asked: llama.cpp knows adapters by numbers, which may be others after a restart.
    """

    def __init__(self, url: str, hub: HubClient, health: Health, clock: Callable[[], float]) -> None:
        self.url = url
        self.root_url = url.removesuffix("/v1")
        self.name = urlsplit(url).netloc.rpartition("@")[2]
        self.hub = hub
        self.health = health
        self.catalogue: Catalogue | None = None
        self.identity: Identity | None = None
        """What it says it is, as asked last."""
        self.identified_at_s = -math.inf
        self.in_flight = 0
        self.chosen = 0
        self._clock = clock
        self._answered_at_s = 0.0
        self._asking: asyncio.Task[Catalogue] | None = None
        self._missing: dict[str, float] = {}

    @property
    def load(self) -> int:
        """Return the draws in flight, and those that recent failures count for."""
        return self.in_flight + self.health.penalty_draws

    def lacks(self, adapter: str | None) -> bool:
        """Return whether it was found without the adapter lately."""
        found_at_s = None if adapter is None else self._missing.get(adapter)
        return found_at_s is not None and self._clock() - found_at_s < _ASK_ADAPTER_AGAIN_S

    def missing(self) -> list[str]:
        """Return the adapters that it was last found without."""
        return sorted(self._missing)

    def set_missing(self, adapter: str, missing: bool, *, until_told: bool = False) -> None:
        """Remember whether it serves the adapter: until it is told anew, or for some seconds."""
        if missing:
            self._missing[adapter] = math.inf if until_told else self._clock()
        else:
            self._missing.pop(adapter, None)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Count one draw, and learn from how it ends what the replica serves."""
        if self.in_flight == 0 and self._clock() - self._answered_at_s >= _RESTART_S:
            self.catalogue = None  # a restart would have broken running draws, but there were none
        self.in_flight += 1
        try:
            yield
            self._answered_at_s = self._clock()
        except (BackendUnreachable, BackendFailed, RequestContained):
            self.catalogue = None  # it may come back as another, or an adapter may be gone
            raise
        finally:
            self.in_flight -= 1

    async def list_once(self, ask: Callable[[], Coroutine[Any, Any, Catalogue]]) -> Catalogue:
        """Ask what it serves and remember it; those who want to know at the same time share the question."""
        if self._asking is None:
            self._asking = asyncio.create_task(ask())
            self._asking.add_done_callback(self._listed)
        return await asyncio.shield(self._asking)

    def _listed(self, asked: asyncio.Task[Catalogue]) -> None:
        self._asking = None
        if not asked.cancelled() and asked.exception() is None:
            self.catalogue = asked.result()


class Route:
    """One race's way through the fleet: its draws share a replica, for its prefix cache, and what they learned.

    Args:
        replica: Where to begin; None leaves the choice to the first draw.
    """

    __slots__ = ("answered", "fingerprint", "hedge", "length_check", "length_checked", "replica")

    def __init__(self, replica: Replica | None = None) -> None:
        self.replica = replica
        self.hedge: Replica | None = None
        """Where the race's hedged draws go."""
        self.answered = False
        """Whether a draw of the race was answered."""
        self.fingerprint: str | None = None
        """The request's, computed when it is first needed."""
        self.length_checked = False
        """Whether somebody has looked at the length of the race's prompt."""
        self.length_check: asyncio.Task[Refusal | None] | None = None
        """Counts the prompt's tokens, where it may be too long; its result is why the prompt is refused."""


class Replicas:
    """All replicas, and the choice among them.

    Args:
        urls: Where they are.
        connect: Makes the client for one URL.
        unhealthy_s: How long the first ejection of a replica lasts.
        clock: Seconds that only move forward.
        places: Draws that may be in flight at a replica; load is counted in parts of them.
    """

    def __init__(
        self,
        urls: Sequence[str],
        connect: Callable[[str], HubClient],
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
        """Have a replica for each URL: those that stay are kept, and those that go finish what they draw."""
        if tuple(urls) == self._urls:
            return
        known = dict(zip(self._urls, self.all, strict=True))
        self._urls = tuple(urls)
        self.all = tuple(known.get(url) or self._replica(url) for url in urls)

    def _replica(self, url: str) -> Replica:
        return Replica(url, self._connect(url), Health(self._unhealthy_s, self.clock), self.clock)

    def choose(
        self,
        *,
        adapter: str | None = None,
        without: Collection[Replica] = (),
        only: frozenset[str] = _NO_ONE,
        panic: bool = True,
    ) -> Replica | None:
        """Return the least loaded replica in rotation, the longest unchosen of equals.

        Args:
            adapter: The adapter that it must serve.
            without: Those not to be chosen.
            only: Names of those to choose from; empty is all.
            panic: With none in rotation, choose the least sick one: a bad signal must not take everything away.
        """
        able = [
            replica
            for replica in self.all
            if replica not in without and (not only or replica.name in only) and not replica.lacks(adapter)
        ]
        chosen = min(
            (replica for replica in able if not replica.health.ejected),
            key=lambda replica: (replica.load / self._places(replica), replica.chosen),
            default=None,
        )
        if chosen is None and panic:
            chosen = min(able, key=_least_sick, default=None)
        if chosen is not None:
            # Draws of this race count as load only once they start; until then this keeps the next race elsewhere.
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
        """Count a failure of a replica, and eject it where that is reason enough and enough others are left."""
        health = replica.health
        health.failed(fault, reason, race)
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
        """Return the share of failures of the other replicas together."""
        rates = [other.health.rate() for other in self.all if other is not replica]
        draws = sum(volume for _, volume in rates)
        return sum(share * volume for share, volume in rates) / draws if draws else 0.0

    def _may_eject(self, fault: Fault) -> bool:
        """Return whether one more may be ejected: of those that still answer at most half, but always one.

        What is gone or hung serves nobody, however many they are; when all are out, the least sick one is used.
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
