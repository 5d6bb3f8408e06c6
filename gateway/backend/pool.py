"""A pool of replicas: one backend as the race sees it, which draws answers in OpenAI's terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Self, TypeVar

from gateway.backend.adapters import Adapters
from gateway.backend.calls import Calls
from gateway.backend.containment import Containment
from gateway.backend.discovery import expand, is_name
from gateway.backend.draws import Draws
from gateway.backend.failover import Failover
from gateway.backend.hedging import Hedging
from gateway.backend.http import Http, TraceConfigs
from gateway.backend.hub import HubClient
from gateway.backend.kind import Kind
from gateway.backend.limit import ServerLimit, ServerLimits
from gateway.backend.prober import Prober, Unanswered
from gateway.backend.prompt_length import PromptLength
from gateway.backend.readiness import check_replicas
from gateway.backend.replicas import Replica, Replicas
from gateway.backend.route import Draw, Route
from gateway.backend.server import Server
from gateway.backend.standing_check import StandingCheck
from gateway.errors import RequestContained
from gateway.settings import BackendSettings
from gateway.single_flight import SingleFlight
from gateway.types import Answer, Delta, Prompt, Readiness, ReplicaState, Sampling
from gateway.weight_check import WeightCheck

_RESOLVE_EVERY_S = 5.0
_PROBE = Prompt([{"role": "user", "content": "Hi"}], Sampling(temperature=0.0, max_tokens=1))

T = TypeVar("T")


class BackendPool:
    """Draws answers from the replicas of one backend; implements ``gateway.types.Backend``.

    Connections open with the first draw and belong to the event loop that made it; ``aclose`` (or ``async with``)
    closes them.

    Args:
        settings: Where the replicas are, and how to reach them.
        limits: How many draws each server gets at a time; pools that share servers share these.
        containment: Knows the requests that broke servers; shared by all pools.
        on_move: Called with ``retry`` or ``hedge`` when a draw or a race also goes to another replica.
        trace_configs: aiohttp's hooks around each call.
    """

    def __init__(
        self,
        settings: BackendSettings,
        *,
        limits: ServerLimits | None = None,
        containment: Containment | None = None,
        on_move: Callable[[str], None] = lambda how: None,
        trace_configs: TraceConfigs = (),
    ) -> None:
        self._settings = settings
        self._http = Http(settings, trace_configs=trace_configs)
        self._kind = Kind(settings.kind)
        self._adapters = Adapters(self._kind, settings.adapters_dir)
        self._calls = Calls(self._kind, self._adapters)
        self._names = any(is_name(url) for url in settings.urls)
        self._resolving: SingleFlight[None] = SingleFlight()
        self._resolved_at_s: float | None = None
        self._containment = containment or Containment()
        self._replicas = Replicas(
            () if self._names else settings.urls,
            self._connect,
            settings.unhealthy_s,
            places=lambda replica: self._draws.limit(replica).limit,
        )
        self._prober = Prober(self._replicas, self._probe, lambda: self._draws.usual.overdue_s(None), self._hung)
        self._draws = Draws(
            self._calls, self._kind, limits or ServerLimits(), self._replicas, self._containment, self._prober
        )
        self._hedging = Hedging(self._draws, self._replicas, self._containment, self._prober, on_move)
        self._failover = Failover(self._replicas, self._containment, on_move)
        self._length = PromptLength(self._kind)
        self._standing_check = StandingCheck(self._replicas, self._calls, self._kind)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def check(self, sampling: Sampling) -> None:
        """Raise ``UnsupportedField`` for a field that this kind of backend cannot serve."""
        self._kind.flavour.check(sampling)

    def choose_replica(self) -> Route:
        """Begin a race's route; its first draw chooses the replica, and the others follow."""
        return Route()

    async def complete(self, prompt: Prompt, *, seed: int, replica: Route | int) -> Answer:
        """Draw one whole answer, from another replica where this one fails.

        ``replica`` is the race's route, or the index of the replica to begin with.

        Raises:
            BackendError: There is no answer.
            InvalidRequest: The messages cannot be sent.
        """
        return await self._draw(prompt, seed, replica, self._hedging.complete)

    async def stream(self, prompt: Prompt, *, seed: int, replica: Route | int) -> AsyncGenerator[Delta, None]:
        """Draw one answer piece by piece; before the first piece another replica may still take over.

        Raises:
            BackendError: There is no answer, or no more of it.
            InvalidRequest: The messages cannot be sent.
        """
        first, rest = await self._draw(prompt, seed, replica, self._hedging.first)
        async with aclosing(rest):
            yield first
            async for delta in rest:
                yield delta

    async def readiness(self) -> Readiness:
        if self._names:
            await self._resolve()
            if not self._replicas.all:
                return Readiness(ready=False, detail="no server has the backend's name")
        return await check_replicas(self._replicas, self._kind)

    async def learn(self) -> None:
        """Learn every replica's kind and how many draws it takes at once, where that is not known."""
        await asyncio.gather(*(self._draws.learn(replica) for replica in self._replicas.all))

    def tend(self) -> None:
        """Probe the ejected replicas whose time is over, and resolve names again; call it every few seconds."""
        self._prober.tend()
        last_s = self._resolved_at_s
        if self._names and (last_s is None or self._replicas.clock() - last_s >= _RESOLVE_EVERY_S):
            self._resolving.start(self._resolve)

    def check_weights(self, adapter: str, check: WeightCheck) -> None:
        """Begin the weight checks of the adapter that are due."""
        self._standing_check.tend(adapter, check)

    def states(self) -> list[ReplicaState]:
        """Return each replica's state now, for metrics."""
        return [
            ReplicaState(
                replica.name,
                None if replica.health.ejection is None else replica.health.ejection.fault.value,
                any(replica.lacks(adapter) for adapter in replica.missing()),
            )
            for replica in self._replicas.all
        ]

    def limits(self) -> list[ServerLimit]:
        """Return the limits of the replicas in rotation, or of all where none is."""
        serving = [replica for replica in self._replicas.all if not replica.health.ejected]
        return [self._draws.limit(replica) for replica in serving or self._replicas.all]

    def held(self) -> int:
        """Return how many ended calls have left something behind on the hub's clients."""
        return sum(replica.hub.held() for replica in self._replicas.all)

    async def aclose(self) -> None:
        self._resolving.cancel()
        await self._standing_check.aclose()
        self._length.close()
        await self._prober.aclose()
        await self._adapters.aclose()
        self._kind.close()
        await self._http.aclose()

    async def _draw(
        self, prompt: Prompt, seed: int, replica: Route | int, attempt: Callable[[Draw, Replica], Awaitable[T]]
    ) -> T:
        if self._names and not self._replicas.all:
            await self._resolve()
        route = replica if isinstance(replica, Route) else Route(self._replicas.all[replica])
        draw = Draw(route, prompt, seed)
        self._prober.tend()
        first, movable = self._failover.first_choice(draw)
        await self._length.check(route, first, prompt)
        return await (self._failover.run(draw, first, attempt) if movable else attempt(draw, first))

    def _connect(self, url: str) -> tuple[Server, HubClient]:
        """Return the clients of the server at a URL; no connection is opened yet."""
        server = Server(self._http, url, timeout_s=self._settings.connect_timeout_s)
        return server, HubClient(self._http, url, timeout_s=self._settings.request_timeout_s)

    async def _resolve(self) -> None:
        """Follow the addresses that the backend's names have now."""
        self._resolved_at_s = self._replicas.clock()
        known = tuple(replica.server.url for replica in self._replicas.all)
        self._replicas.follow(await expand(self._settings.urls, known))

    async def _probe(self, replica: Replica) -> object:
        return await self._calls.complete(replica, _PROBE, seed=1)

    def _hung(self, replica: Replica, unanswered: Unanswered) -> None:
        """Suspect the requests that a hung replica left unanswered: one of them may be the cause."""
        for request, context in unanswered.items():
            try:
                context.run(self._containment.broke, request, replica.name)  # logged with the request's id and key
            except RequestContained:
                continue
