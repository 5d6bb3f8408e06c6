"""Which replica serves the next race."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from gateway.backend.flavours import Catalogue
from gateway.backend.hub import HubClient
from gateway.errors import BackendFailed, BackendUnreachable

# Shorter than any restart: one that breaks no connection, because none is in use, is seen as silence of this length.
_RESTART_S = 1.0


class Replica:
    """One backend server: its client, its load, and when it last broke a connection.

    ``name`` is host and port, which may be told; the URL may hold a password. ``catalogue`` is what it serves, None
    where it has to be asked: llama.cpp knows adapters by numbers, which may be others after a restart.
    """

    def __init__(self, url: str, hub: HubClient, clock: Callable[[], float]) -> None:
        self.root_url = url.removesuffix("/v1")
        self.name = urlsplit(url).netloc.rpartition("@")[2]
        self.hub = hub
        self.catalogue: Catalogue | None = None
        self.in_flight = 0
        self.chosen = 0
        self.broken_at_s: float | None = None
        self._clock = clock
        self._answered_at_s = 0.0
        self._asking: asyncio.Task[Catalogue] | None = None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Count one draw, and learn from how it ends."""
        if self.in_flight == 0 and self._clock() - self._answered_at_s >= _RESTART_S:
            self.catalogue = None  # a restart would have broken running draws, but there were none
        self.in_flight += 1
        try:
            yield
            self.broken_at_s = None
            self._answered_at_s = self._clock()
        except BackendUnreachable:
            self.broken_at_s = self._clock()
            self.catalogue = None  # it may come back as another
            raise
        except BackendFailed:
            self.catalogue = None  # an adapter may be gone
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

    def healthy(self, unhealthy_s: float) -> bool:
        """Whether it may be tried: it broke no connection lately."""
        return self.broken_at_s is None or self._clock() - self.broken_at_s >= unhealthy_s


class Replicas:
    """All replicas, and the choice among them.

    Args:
        urls: Where they are.
        connect: Makes the client for one URL.
        unhealthy_s: How long one that broke a connection is passed over.
        clock: Seconds that only move forward.
    """

    def __init__(
        self,
        urls: Sequence[str],
        connect: Callable[[str], HubClient],
        unhealthy_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.all = tuple(Replica(url, connect(url), clock) for url in urls)
        self._unhealthy_s = unhealthy_s
        self._choices = 0

    def choose(self) -> int:
        """The least loaded healthy replica, the longest unchosen of equals; all broken, the one broken longest ago."""
        chosen = self._best(self.all) or min(self.all, key=lambda replica: replica.broken_at_s or 0.0)
        # Draws of this race count as load only once they start; until then this keeps the next race elsewhere.
        self._choices += 1
        chosen.chosen = self._choices
        return self.all.index(chosen)

    def spare(self, broken: Replica) -> Replica | None:
        """Another healthy replica to draw from, where there is one."""
        return self._best([replica for replica in self.all if replica is not broken])

    def _best(self, replicas: Sequence[Replica]) -> Replica | None:
        healthy = [replica for replica in replicas if replica.healthy(self._unhealthy_s)]
        return min(healthy, key=lambda replica: (replica.in_flight, replica.chosen), default=None)
