"""The backend as the rest of the gateway sees it: draws from a pool of replicas, in OpenAI's terms.

A draw goes to its race's replica. Where that fails before anything reached the caller, another replica answers instead
(a retry, within a budget); where it takes far longer than usual, another one competes with it (a hedge, within a
budget). A request that broke two servers goes to no further one (``gateway.backend.containment``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Self, TypeVar

import structlog

from gateway.backend.budget import Budget
from gateway.backend.calls import Calls
from gateway.backend.containment import Containment
from gateway.backend.discovery import expand, is_name
from gateway.backend.draws import TAKEOVERS, Draws, Opened
from gateway.backend.health import Fault
from gateway.backend.hedging import Call, hedged
from gateway.backend.limit import ServerLimit, ServerLimits
from gateway.backend.prober import Prober, Unanswered
from gateway.backend.prompt_length import PromptLength
from gateway.backend.readiness import check_replica
from gateway.backend.replicas import Replica, Replicas, Route
from gateway.backend.transport import TraceConfigs
from gateway.backend.usual_time import UsualTime
from gateway.backend.weights import Weights
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
from gateway.settings import BackendSettings
from gateway.types import Answer, Delta, Prompt, Readiness, ReplicaState, Sampling
from gateway.weight_check import WeightCheck

_RESOLVE_EVERY_S = 5.0
_RETRY_SHARE = 0.2
_HEDGE_SHARE = 0.05
_FLOOR_PER_S = 2.0
_RETRY_BURST = 100.0
_HEDGE_BURST = 20.0

# What another replica might answer. A refusal (422) would be the same there.
_MOVABLE = (BackendUnreachable, BackendFailed, BackendProtocolError, BackendTimeout, BackendOverloaded)
# Moved at no cost to the fleet: nothing was drawn. Those that broke are bounded by containment and ejection.
_FREE = (AdapterMissing, BackendOverloaded, BackendUnreachable)
_PROBE = Prompt([{"role": "user", "content": "Hi"}], Sampling(temperature=0.0, max_tokens=1))
_ANYWHERE: frozenset[str] = frozenset()

T = TypeVar("T")

log = structlog.get_logger()


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
        self._calls = Calls(settings, limits or ServerLimits(), trace_configs=trace_configs)
        self._names = any(is_name(url) for url in settings.urls)
        self._replicas = Replicas(
            () if self._names else settings.urls,
            self._calls.connect,
            settings.unhealthy_s,
            places=lambda replica: self._calls.limit(replica).limit,
        )
        self._resolving: asyncio.Task[None] | None = None
        self._resolved_at_s: float | None = None
        self._containment = containment or Containment()
        self._on_move = on_move
        self._prober = Prober(self._replicas, self._probe, lambda: self._draws.usual.overdue_s(None), self._hung)
        self._draws = Draws(self._calls, self._replicas, self._containment, self._prober)
        self._weights = Weights(self._replicas, self._calls)
        self._length = PromptLength(self._calls)
        self._retries = Budget(_RETRY_SHARE, floor_per_s=_FLOOR_PER_S, burst=_RETRY_BURST)
        self._hedges = Budget(_HEDGE_SHARE, floor_per_s=_FLOOR_PER_S, burst=_HEDGE_BURST)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def check(self, sampling: Sampling) -> None:
        """Refuse what this backend cannot serve.

        Raises:
            UnsupportedField: Names the field.
        """
        self._calls.flavour.check(sampling)

    def choose_replica(self) -> Route:
        """Begin a race's route; its first draw chooses the replica, and the others follow."""
        return Route()

    async def complete(self, prompt: Prompt, *, seed: int, replica: Route | int) -> Answer:
        """Draw one whole answer, from another replica where this one fails.

        Args:
            prompt: What is asked.
            seed: The draw's own.
            replica: The race's route, or the index of the replica to begin with.

        Raises:
            BackendError: No answer could be had, and why.
            InvalidRequest: The messages cannot be sent.
        """
        if self._names and not self._replicas.all:
            await self._resolve()
        route, tried = self._route(replica), list[Replica]()
        chosen, only = self._first_choice(route, prompt)
        await self._length.check(route, chosen, prompt)
        while True:
            try:
                return await self._draw(route, chosen, prompt, seed, tried)
            except BackendError as error:
                spare = None if only else self._spare(route, prompt, chosen, tried, error)
                if spare is None:
                    raise
                chosen = spare

    async def stream(self, prompt: Prompt, *, seed: int, replica: Route | int) -> AsyncGenerator[Delta, None]:
        """Draw one answer piece by piece; before the first piece another replica may still take over.

        Raises:
            BackendError: No answer could be had, or no more of it, and why.
            InvalidRequest: The messages cannot be sent.
        """
        if self._names and not self._replicas.all:
            await self._resolve()
        route, tried = self._route(replica), list[Replica]()
        chosen, only = self._first_choice(route, prompt)
        await self._length.check(route, chosen, prompt)
        while True:
            try:
                first, rest = await self._open_stream(route, chosen, prompt, seed, tried)
                break
            except BackendError as error:
                spare = None if only else self._spare(route, prompt, chosen, tried, error)
                if spare is None:
                    raise
                chosen = spare
        async with aclosing(rest):
            yield first
            async for delta in rest:
                yield delta

    async def readiness(self) -> Readiness:
        """Ask every replica for its health; ready when at least one is well. Names those that are not."""
        if self._names:
            await self._resolve()
            if not self._replicas.all:
                return Readiness(ready=False, detail="no server has the backend's name")
        everyone = self._replicas.all
        found = await asyncio.gather(*(check_replica(one, self._replicas, self._calls) for one in everyone))
        facts = {replica.name: problem or "ok" for replica, (problem, _) in zip(everyone, found, strict=True)}
        detail = "; ".join(f"{name}: {state}" for name, state in facts.items() if state != "ok")
        limits = {one.name: one.identity.limits for one in everyone if one.identity and one.identity.limits}
        all_facts = {"replicas": facts} | ({"limits": limits} if limits else {})
        return Readiness(ready=any(serves for _, serves in found), detail=detail, facts=all_facts)

    async def learn(self) -> None:
        """Ask every replica what it is and how many draws it takes at once, unless it has said so."""
        await asyncio.gather(*(self._calls.learn(replica) for replica in self._replicas.all))

    def tend(self) -> None:
        """Probe the ejected replicas whose time is over, and look names up again; call it every now and then."""
        self._prober.tend()
        last_s = self._resolved_at_s
        if (
            self._names
            and self._resolving is None
            and (last_s is None or self._replicas.clock() - last_s >= _RESOLVE_EVERY_S)
        ):
            self._resolving = asyncio.create_task(self._resolve(), name="backend-names")
            self._resolving.add_done_callback(lambda _: setattr(self, "_resolving", None))

    def check_weights(self, adapter: str, check: WeightCheck) -> None:
        """Begin the checks that are due whether each replica still answers with the adapter."""
        self._weights.tend(adapter, check)

    async def _resolve(self) -> None:
        """Follow the addresses that the backend's names have now."""
        self._resolved_at_s = self._replicas.clock()
        known = tuple(replica.url for replica in self._replicas.all)
        self._replicas.follow(await expand(self._settings.urls, known))

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
        return [self._calls.limit(replica) for replica in serving or self._replicas.all]

    def held(self) -> int:
        """What ended calls have left behind on the hub's clients."""
        return sum(replica.hub.held() for replica in self._replicas.all)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._resolving is not None:
            self._resolving.cancel()
        await self._weights.aclose()
        await self._length.aclose()
        await self._prober.aclose()
        await self._calls.aclose()

    def _route(self, replica: Route | int) -> Route:
        self._retries.deposit()
        return replica if isinstance(replica, Route) else Route(self._replicas.all[replica])

    def _first_choice(self, route: Route, prompt: Prompt) -> tuple[Replica, frozenset[str]]:
        """Return where a draw begins, and, for a contained request on trial, the only servers it may go to.

        Raises:
            RequestContained: The request may go nowhere.
            AdapterMissing: No replica has the adapter.
        """
        self._prober.tend()
        only = _ANYWHERE if self._containment.idle else self._containment.admit(self._draws.fingerprint(route, prompt))
        chosen, adapter = route.replica, prompt.adapter
        if only:
            chosen = self._replicas.choose(adapter=adapter, only=only, panic=False)
            if chosen is None:
                raise RequestContained("this request broke two backend servers, and they are not back yet")
        elif chosen is None:
            chosen = route.replica = self._replicas.choose(adapter=adapter)
        elif chosen.health.ejected or chosen.lacks(adapter):
            chosen = route.replica = self._replicas.choose(adapter=adapter, panic=False) or chosen
        if not self._replicas.all:
            raise BackendUnreachable("no server has the backend's name", was_sent=False)
        if chosen is None:
            raise AdapterMissing(f"no replica of the backend has loaded the adapter {adapter}")
        return chosen, only

    def _spare(
        self, route: Route, prompt: Prompt, broken: Replica, tried: list[Replica], error: BackendError
    ) -> Replica | None:
        """Return another replica for a draw that failed; None where the error stands.

        Raises:
            RequestContained: Another draw of this request broke a second server meanwhile.
        """
        tried.append(broken)
        if not isinstance(error, _MOVABLE):
            return None
        if not self._containment.idle:
            self._containment.check(self._draws.fingerprint(route, prompt))
        missing = isinstance(error, AdapterMissing)
        if len(tried) > TAKEOVERS and not missing:
            return None
        reached = [one for one in (route.replica, route.hedge) if one is not None and one not in tried]
        serving = [one for one in reached if not one.health.ejected and not one.lacks(prompt.adapter)]
        if serving:
            spare: Replica | None = serving[0]  # a race keeps to the replicas that it has reached
        else:
            spare = self._replicas.choose(adapter=prompt.adapter, without=tried, panic=False)
        if spare is None:
            return None
        if not isinstance(error, _FREE) and not self._retries.withdraw():
            log.warning("backend_retry_budget_spent", broken=broken.name, reason=error.message)
            return None
        route.replica = spare
        self._on_move("retry")
        log.warning("backend_replica_replaced", broken=broken.name, by=spare.name, reason=error.message)
        return spare

    async def _draw(self, route: Route, replica: Replica, prompt: Prompt, seed: int, tried: list[Replica]) -> Answer:
        """Draw from a replica; once the draw is overdue, another one competes with it."""

        def second() -> Call[Answer] | None:
            other = self._overdue(route, replica, prompt, tried, self._draws.usual)
            if other is None:
                return None
            return self._compete(
                lambda: self._draws.complete(route, other, prompt, seed, tried), route, prompt, replica, other
            )

        return await hedged(
            self._draws.complete(route, replica, prompt, seed, tried),
            second,
            lambda: self._draws.usual.overdue_s(prompt.sampling.max_tokens),
        )

    async def _open_stream(
        self, route: Route, replica: Replica, prompt: Prompt, seed: int, tried: list[Replica]
    ) -> Opened:
        """Return a stream's first piece and the rest of it; once that is overdue, another replica competes."""

        def second() -> Call[Opened] | None:
            other = self._overdue(route, replica, prompt, tried, self._draws.usual_first)
            if other is None:
                return None
            return self._compete(
                lambda: self._draws.first(route, other, prompt, seed, tried), route, prompt, replica, other
            )

        return await hedged(
            self._draws.first(route, replica, prompt, seed, tried),
            second,
            lambda: self._draws.usual_first.overdue_s(None),
            lambda opened: asyncio.ensure_future(opened[1].aclose()),
        )

    def _overdue(
        self, route: Route, replica: Replica, prompt: Prompt, tried: list[Replica], usual: UsualTime
    ) -> Replica | None:
        """Return the replica that competes with an overdue draw; None where there is to be no hedge now."""
        answered_at_s = replica.health.answered_at_s
        limit_s = usual.overdue_s(prompt.sampling.max_tokens if usual is self._draws.usual else None)
        silent = answered_at_s is None or self._replicas.clock() - answered_at_s > limit_s
        if silent:
            self._prober.suspect(replica, self._draws.fingerprint(route, prompt))
        elif route.answered:
            return None  # only a longer answer than the race's others
        if not self._containment.idle and self._containment.suspects(self._draws.fingerprint(route, prompt)):
            return None  # it broke one server and may have hung this one: it is not to reach a third
        if route.hedge is None:
            other = self._replicas.choose(adapter=prompt.adapter, without=[replica, *tried], panic=False)
            hung = replica.health.ejection is not None and replica.health.ejection.fault is Fault.HUNG
            if other is None or not (hung or self._hedges.withdraw()):
                return None
            route.hedge = other
            self._on_move("hedge")
            log.warning("backend_draw_hedged", slow=replica.name, by=other.name, after_s=round(limit_s, 2))
        hedge = route.hedge
        return None if hedge is replica or hedge in tried else hedge

    async def _compete(
        self, call: Callable[[], Call[T]], route: Route, prompt: Prompt, slow: Replica, other: Replica
    ) -> T:
        """Make the second call; its success is the slow replica's failure, and its silence is looked into as well."""
        request = self._draws.fingerprint(route, prompt)
        limit_s = self._draws.usual.overdue_s(prompt.sampling.max_tokens)
        timer = asyncio.get_running_loop().call_later(limit_s, self._prober.suspect, other, request)
        try:
            result = await call()
        finally:
            timer.cancel()
        self._replicas.failed(slow, Fault.TIMEOUT, "its draws take far longer than usual", route)
        return result

    async def _probe(self, replica: Replica) -> object:
        return await self._calls.complete(replica, _PROBE, seed=1)

    def _hung(self, replica: Replica, unanswered: Unanswered) -> None:
        """Suspect the requests that a hung replica left unanswered: one of them may be the reason."""
        for request, context in unanswered.items():
            try:
                context.run(self._containment.broke, request, replica.name)  # logged with the request's id and key
            except RequestContained:
                continue
