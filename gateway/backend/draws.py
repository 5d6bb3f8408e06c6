"""One draw at one replica: it waits its turn and is made; its end updates the replica's health and the suspects."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial

from gateway.backend.calls import Calls
from gateway.backend.containment import Containment
from gateway.backend.kind import Kind
from gateway.backend.limit import ServerLimit, ServerLimits, Turn
from gateway.backend.prober import Prober
from gateway.backend.replicas import Replica, Replicas
from gateway.backend.route import Draw
from gateway.backend.usual_time import UsualTime
from gateway.errors import BackendOverloaded, BackendUnreachable, GatewayError
from gateway.types import Answer, Delta

TAKEOVERS = 2
"""How many other replicas a draw that fails is sent to, one after the other."""

Opened = tuple[Delta, AsyncGenerator[Delta, None]]
"""A stream's first piece, and the rest of it."""


@dataclass(eq=False)
class Draws:
    """Makes draws at single replicas and remembers how long they take."""

    calls: Calls
    kind: Kind
    limits: ServerLimits
    replicas: Replicas
    containment: Containment
    prober: Prober
    usual: UsualTime = field(default_factory=UsualTime)
    """Of whole draws."""
    usual_first: UsualTime = field(default_factory=UsualTime)
    """Of a stream's first piece."""

    async def complete(self, draw: Draw, replica: Replica) -> Answer:
        """Draw one whole answer; a draw that the replica refuses waits its turn, unless another one has room."""
        started_s = self.replicas.clock()
        with self._counted(draw, replica):
            turn = await self._turn(replica)
            while True:
                try:
                    async with turn:
                        answer = await self.calls.complete(replica, draw.prompt, draw.seed)
                    break
                except BackendOverloaded:
                    if self._room_elsewhere(draw, replica) or not await turn.again():
                        raise
        took_s = self.replicas.clock() - started_s
        self.usual.add(draw.prompt.sampling.max_tokens, took_s, answer.completion_tokens)
        return answer

    async def first(self, draw: Draw, replica: Replica) -> Opened:
        """Open a stream; return its first piece and the rest."""
        started_s = self.replicas.clock()
        deltas = self._stream(draw, replica)
        try:
            first = await anext(deltas)
        except BaseException:
            await deltas.aclose()
            raise
        self.usual_first.add(None, self.replicas.clock() - started_s, 1)
        return first, deltas

    async def learn(self, replica: Replica) -> None:
        """Learn the replica's kind and how many draws it takes at once; one that does not answer is asked later."""
        await self.kind.decide(replica)
        with contextlib.suppress(GatewayError):
            await self._learn_capacity(replica)

    def limit(self, replica: Replica) -> ServerLimit:
        """Return the limit of draws at the replica."""
        return self.limits.of(replica.server.root_url)

    async def _stream(self, draw: Draw, replica: Replica) -> AsyncGenerator[Delta, None]:
        with self._counted(draw, replica):
            turn = await self._turn(replica)
            begun = False
            while True:
                try:
                    async with turn, aclosing(self.calls.stream(replica, draw.prompt, draw.seed)) as deltas:
                        async for delta in deltas:
                            begun = True
                            replica.health.answered_at_s = self.replicas.clock()
                            yield delta
                    break
                except BackendOverloaded:
                    if begun or self._room_elsewhere(draw, replica) or not await turn.again():
                        raise

    async def _turn(self, replica: Replica) -> Turn:
        await self.kind.decide(replica)
        await self._learn_capacity(replica)
        return self.limit(replica).turn()

    async def _learn_capacity(self, replica: Replica) -> None:
        flavour = self.kind.flavour
        if flavour.capacity_path is not None:
            await self.limit(replica).learn_capacity(partial(replica.server.read_capacity, flavour))

    def _room_elsewhere(self, draw: Draw, replica: Replica) -> bool:
        """Return whether another replica would serve a refused draw at once."""
        return len(draw.tried) < TAKEOVERS and any(
            other is not replica
            and other not in draw.tried
            and not other.health.ejected
            and not other.lacks(draw.prompt.adapter)
            and self.limit(other).has_room
            for other in self.replicas.all
        )

    @contextmanager
    def _counted(self, draw: Draw, replica: Replica) -> Iterator[None]:
        """Count one draw; a broken connection makes its request a suspect, an answer clears it."""
        with self.replicas.drawing(replica, draw.route):
            try:
                yield
            except BackendUnreachable as error:
                if error.broke and replica.health.trusted:
                    self.containment.broke(draw.fingerprint(self.containment), replica.name)
                raise
        draw.route.answered = True
        if not self.containment.idle:
            self.containment.answered(draw.fingerprint(self.containment))
        if not self.prober.idle:
            self.prober.answered(draw.fingerprint(self.containment))
