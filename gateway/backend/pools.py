"""A pool of replicas for each set of URLs that a policy names.

Pools are made when the first race needs them and closed once no policy names them and no race runs in them.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import structlog

from gateway.backend.client import BackendPool
from gateway.backend.containment import Containment
from gateway.backend.limit import ServerLimit, ServerLimits
from gateway.backend.transport import TraceConfigs
from gateway.settings import BackendSettings
from gateway.types import Readiness, ReplicaState, Sampling
from gateway.weight_check import WeightCheck

log = structlog.get_logger()

Urls = tuple[str, ...]


class BackendPools:
    """Pools of replicas, by their URLs.

    Args:
        settings: How to reach a backend; its URLs are those of a policy that names none.
        named: The URLs that the policy in force names, the stable arm's first. No I/O.
        limits: How many draws each server gets at a time.
        containment: Knows the requests that broke servers, whatever the pool.
        on_move: Called with ``retry`` or ``hedge`` when a draw or a race also goes to another replica.
        trace_configs: aiohttp's hooks around each call.
    """

    def __init__(
        self,
        settings: BackendSettings,
        named: Callable[[], Sequence[Urls]],
        *,
        limits: ServerLimits | None = None,
        containment: Containment | None = None,
        on_move: Callable[[str], None] = lambda how: None,
        trace_configs: TraceConfigs = (),
    ) -> None:
        self._settings = settings
        self._limits = limits or ServerLimits()
        self._containment = containment or Containment()
        self._on_move = on_move
        self._trace_configs = trace_configs
        self._named = named
        self._pools: dict[Urls, BackendPool] = {}
        self._leases: Counter[Urls] = Counter()

    def check(self, sampling: Sampling) -> None:
        """Refuse what this kind of backend cannot serve.

        Raises:
            UnsupportedField: Names the field.
        """
        self._pool(self._settings.urls).check(sampling)

    @property
    def leased(self) -> int:
        """Pools in use now, each counted as often as it is: a race holds one, and a readiness probe for its moment."""
        return self._leases.total()

    @contextmanager
    def lease(self, urls: Urls) -> Iterator[BackendPool]:
        """The pool at these URLs (none: the settings'), kept open while it is in use."""
        urls = urls or self._settings.urls
        self._leases[urls] += 1
        try:
            yield self._pool(urls)
        finally:
            self._leases[urls] -= 1

    async def learn(self) -> None:
        """Ask the servers of the policy in force how many draws they take, within one connect timeout.

        Permits count on it from the first request on: several workers that do not know it yet would take it each.
        """
        named = dict.fromkeys(urls or self._settings.urls for urls in self._named())
        asking = [asyncio.create_task(self._pool(urls).learn(), name="learn servers") for urls in named]
        _, pending = await asyncio.wait(asking, timeout=self._settings.connect_timeout_s)
        for task in pending:
            task.cancel()

    def tend(self) -> None:
        """Probe the ejected replicas whose time is over; call it every now and then."""
        for pool in self._pools.values():
            pool.tend()

    def check_weights(self, urls: Urls, adapter: str, check: WeightCheck) -> None:
        """Begin the checks that are due whether the servers at these URLs still answer with the adapter."""
        self._pool(urls or self._settings.urls).check_weights(adapter, check)

    async def close_unused(self) -> None:
        """Close pools that no policy names any more and in which nothing runs; call it every now and then."""
        named = {urls or self._settings.urls for urls in self._named()}
        for urls in [urls for urls in self._pools if urls not in named and not self._leases[urls]]:
            del self._leases[urls]
            pool = self._pools.pop(urls)
            log.info("backend_pool_closed", replicas=len(urls))
            await pool.aclose()

    def states(self) -> list[ReplicaState]:
        """Return the state of every server, each once, whichever pool it is in."""
        known: dict[str, ReplicaState] = {}
        for state in (state for pool in self._pools.values() for state in pool.states()):
            before = known.get(state.name, state)
            known[state.name] = ReplicaState(
                state.name, state.fault or before.fault, state.lacks_adapter or before.lacks_adapter
            )
        return list(known.values())

    def capacity(self) -> int:
        """Return how many draws the servers of the policy in force take now from this process, together."""
        return sum(limit.limit for limit in self._serving())

    def total_capacity(self) -> float:
        """Return how many they take from all their clients, as they say; infinity where one of them does not say."""
        return sum(math.inf if limit.capacity is None else limit.capacity for limit in self._serving())

    def held(self) -> int:
        """What ended calls have left behind on the hub's clients."""
        return sum(pool.held() for pool in self._pools.values())

    async def readiness(self) -> Readiness:
        """Ready when the stable arm's pool is; tells of the other one's trouble, which fails no request."""
        stable, *others = dict.fromkeys(urls or self._settings.urls for urls in self._named())
        found, *beside = await asyncio.gather(*(self._asked(urls) for urls in (stable, *others)))
        detail = "; ".join(state.detail for state in (found, *beside) if state.detail)
        return Readiness(found.ready, detail, found.facts)

    async def aclose(self) -> None:
        """Close every connection."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.aclose()

    async def _asked(self, urls: Urls) -> Readiness:
        with self.lease(urls) as pool:
            return await pool.readiness()

    def _serving(self) -> set[ServerLimit]:
        """Return the limits of the servers of the policy in force."""
        pools = {urls or self._settings.urls for urls in self._named()}
        return {limit for urls in pools for limit in self._pool(urls).limits()}

    def _pool(self, urls: Urls) -> BackendPool:
        pool = self._pools.get(urls)
        if pool is None:
            settings = self._settings.model_copy(update={"urls": urls})
            pool = self._pools[urls] = BackendPool(
                settings,
                limits=self._limits,
                containment=self._containment,
                on_move=self._on_move,
                trace_configs=self._trace_configs,
            )
        return pool
