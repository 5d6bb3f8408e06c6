"""One draw at one replica: its turn, what its end says of the replica, of the request and of the usual time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

from gateway.backend.calls import Calls
from gateway.backend.containment import Containment
from gateway.backend.prober import Prober
from gateway.backend.replicas import Replica, Replicas, Route
from gateway.backend.usual_time import UsualTime
from gateway.errors import BackendOverloaded, BackendUnreachable
from gateway.types import Answer, Delta, Prompt

TAKEOVERS = 2
"""How many other replicas a draw that fails is sent to, one after the other."""

Opened = tuple[Delta, AsyncGenerator[Delta, None]]
"""A stream's first piece, and the rest of it."""


class Draws:
    """Draws from single replicas, and remembers how long that usually takes.

    Args:
        calls: Makes the calls.
        replicas: Counts each draw as load and for health.
        containment: Is told of requests that break a connection.
        prober: Is told of requests that were answered.
    """

    def __init__(self, calls: Calls, replicas: Replicas, containment: Containment, prober: Prober) -> None:
        self._calls = calls
        self._replicas = replicas
        self._containment = containment
        self._prober = prober
        self.usual = UsualTime()
        """Of whole draws."""
        self.usual_first = UsualTime()
        """Of a stream's first piece."""

    async def complete(self, route: Route, replica: Replica, prompt: Prompt, seed: int, tried: list[Replica]) -> Answer:
        """Draw one whole answer from this replica; a refused draw waits for its turn, unless another has room."""
        started_s = self._replicas.clock()
        with self._drawing(route, replica, prompt):
            await self._calls.know(replica)
            turn = await self._calls.turn(replica)
            while True:
                try:
                    async with turn:
                        answer = await self._calls.complete(replica, prompt, seed)
                    break
                except BackendOverloaded:
                    if self._room_elsewhere(replica, prompt, tried) or not await turn.again():
                        raise
        took_s = self._replicas.clock() - started_s
        self.usual.add(prompt.sampling.max_tokens, took_s, answer.completion_tokens)
        return answer

    async def first(self, route: Route, replica: Replica, prompt: Prompt, seed: int, tried: list[Replica]) -> Opened:
        """Open a stream at this replica; return its first piece and the rest."""
        started_s = self._replicas.clock()
        deltas = self._stream(route, replica, prompt, seed, tried)
        try:
            first = await anext(deltas)
        except BaseException:
            await deltas.aclose()
            raise
        self.usual_first.add(None, self._replicas.clock() - started_s, 1)
        return first, deltas

    async def _stream(
        self, route: Route, replica: Replica, prompt: Prompt, seed: int, tried: list[Replica]
    ) -> AsyncGenerator[Delta, None]:
        """Stream one answer from this replica; a draw refused before its first piece waits, or goes where room is."""
        with self._drawing(route, replica, prompt):
            await self._calls.know(replica)
            turn = await self._calls.turn(replica)
            begun = False
            while True:
                try:
                    async with turn, aclosing(self._calls.stream(replica, prompt, seed)) as deltas:
                        async for delta in deltas:
                            begun = True
                            replica.health.answered_at_s = self._replicas.clock()
                            yield delta
                    break
                except BackendOverloaded:
                    if begun or self._room_elsewhere(replica, prompt, tried) or not await turn.again():
                        raise

    def _room_elsewhere(self, replica: Replica, prompt: Prompt, tried: list[Replica]) -> bool:
        """Return whether a refused draw would be served at once by another replica."""
        return len(tried) < TAKEOVERS and any(
            other is not replica
            and other not in tried
            and not other.health.ejected
            and not other.lacks(prompt.adapter)
            and self._calls.has_room(other)
            for other in self._replicas.all
        )

    @contextmanager
    def _drawing(self, route: Route, replica: Replica, prompt: Prompt) -> Iterator[None]:
        """Count one draw; one that breaks the connection makes its request a suspect, an answer clears it."""
        with self._replicas.drawing(replica, route):
            try:
                yield
            except BackendUnreachable as error:
                if error.broke and replica.health.trusted:
                    self._containment.broke(self.fingerprint(route, prompt), replica.name)
                raise
        route.answered = True
        if not self._containment.idle:
            self._containment.answered(self.fingerprint(route, prompt))
        if not self._prober.idle:
            self._prober.answered(self.fingerprint(route, prompt))

    def fingerprint(self, route: Route, prompt: Prompt) -> str:
        """Return what containment knows a race's request by, computed once."""
        if route.fingerprint is None:
            route.fingerprint = self._containment.fingerprint(prompt)
        return route.fingerprint
