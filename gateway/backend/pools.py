"""A pool of replicas for each set of URLs that a policy names.

A pool is made when the first race needs it, and closed once no policy names it and no race runs in it.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from gateway.backend.limit import ServerLimit
from gateway.backend.pool import BackendPool
from gateway.settings import BackendSettings
from gateway.types import Readiness, ReplicaState, Sampling
from gateway.weight_check import WeightCheck

log = structlog.get_logger()

Urls = tuple[str, ...]


class BackendPools:
    """Pools by their URLs.

    Args:
        settings: The URLs of policies that name none, and how to reach all of them.
        named: Returns the URLs that the policy in force names, the stable arm's first. No I/O.
        make: Makes a pool; what pools share (limits, containment) is bound in it.
    """

    def __init__(
        self,
        settings: BackendSettings,
        named: Callable[[], Sequence[Urls]],
        make: Callable[[BackendSettings], BackendPool],
    ) -> None:
        self._settings = settings
        self._named = named
        self._make = make
        self._pools: dict[Urls, BackendPool] = {}
        self._leases: Counter[Urls] = Counter()

    def check(self, sampling: Sampling) -> None:
        """Raise ``UnsupportedField`` for a field that this kind of backend cannot serve."""
        self._pool(self._settings.urls).check(sampling)

    @property
    def leased(self) -> int:
        """The number of leases now: one for each race, and one for each readiness check while it runs."""
        return self._leases.total()

    @contextmanager
    def lease(self, urls: Urls) -> Iterator[BackendPool]:
        """Keep the pool at these URLs (none: the settings') open while it is in use."""
        urls = urls or self._settings.urls
        self._leases[urls] += 1
        try:
            yield self._pool(urls)
        finally:
            self._leases[urls] -= 1

    async def learn(self) -> None:
        """Ask the servers of the policy in force how many draws they take, within one connect timeout.

        Permits need it from the first request on: several workers that do not know it yet would each take all of it.
        """
        learning = [asyncio.create_task(self._pool(urls).learn(), name="learn servers") for urls in self._in_force()]
        _, pending = await asyncio.wait(learning, timeout=self._settings.connect_timeout_s)
        for task in pending:
            task.cancel()

    def tend(self) -> None:
        """Probe the ejected replicas whose time is over; call it every few seconds."""
        for pool in self._pools.values():
            pool.tend()

    def check_weights(self, urls: Urls, adapter: str, check: WeightCheck) -> None:
        """Begin the weight checks of the adapter that are due at the servers of these URLs."""
        self._pool(urls or self._settings.urls).check_weights(adapter, check)

    async def close_unused(self) -> None:
        """Close the pools that no policy names and no race uses; call it every few seconds."""
        in_force = self._in_force()
        for urls in [urls for urls in self._pools if urls not in in_force and not self._leases[urls]]:
            del self._leases[urls]
            pool = self._pools.pop(urls)
            log.info("backend_pool_closed", replicas=len(urls))
            await pool.aclose()

    def states(self) -> list[ReplicaState]:
        """Return the state of every server, each once however many pools it is in."""
        known: dict[str, ReplicaState] = {}
        for state in (state for pool in self._pools.values() for state in pool.states()):
            before = known.get(state.name, state)
            known[state.name] = ReplicaState(
                state.name, state.fault or before.fault, state.lacks_adapter or before.lacks_adapter
            )
        return list(known.values())

    def capacity(self) -> int:
        """Return how many draws the servers of the policy in force take from this process, together."""
        return sum(limit.limit for limit in self._limits())

    def total_capacity(self) -> float:
        """Return how many they take from all their clients; infinity if one of them does not say."""
        return sum(math.inf if limit.capacity is None else limit.capacity for limit in self._limits())

    def held(self) -> int:
        """Return how many ended calls have left something behind on the hub's clients."""
        return sum(pool.held() for pool in self._pools.values())

    async def readiness(self) -> Readiness:
        """Ready when the stable arm's pool is; the other pools' problems are in ``detail``: they fail no request."""
        stable, *others = await asyncio.gather(*(self._readiness(urls) for urls in self._in_force()))
        detail = "; ".join(found.detail for found in (stable, *others) if found.detail)
        return Readiness(stable.ready, detail, stable.facts)

    async def aclose(self) -> None:
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.aclose()

    async def _readiness(self, urls: Urls) -> Readiness:
        with self.lease(urls) as pool:
            return await pool.readiness()

    def _in_force(self) -> list[Urls]:
        """Return the URLs that the policy in force names, the stable arm's first."""
        return list(dict.fromkeys(urls or self._settings.urls for urls in self._named()))

    def _limits(self) -> set[ServerLimit]:
        return {limit for urls in self._in_force() for limit in self._pool(urls).limits()}

    def _pool(self, urls: Urls) -> BackendPool:
        pool = self._pools.get(urls)
        if pool is None:
            pool = self._pools[urls] = self._make(self._settings.model_copy(update={"urls": urls}))
        return pool
