"""Several reward servers of one model: the least loaded one is asked, and another one if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

from gateway.errors import RewardError, RewardRefused, RewardUnavailable, strip_traceback
from gateway.reward.availability import Availability
from gateway.reward.client import ClassifyClient, Server
from gateway.settings import RewardSettings
from gateway.types import Readiness, Score

# A call ends before the race stops waiting for its reward, so that a server that hangs is noticed.
_SHARE_OF_TIMEOUT = 0.9

Result = TypeVar("Result")


class _Replica:
    """One server: its client, its load and its availability. ``name`` is host and port."""

    def __init__(
        self, settings: RewardSettings, url: str, timeout_s: float, meet: Callable[[_Replica], Awaitable[object]]
    ) -> None:
        self.name = urlsplit(url).netloc.rpartition("@")[2]
        self.client = ClassifyClient(settings, url, timeout_s=timeout_s)
        self.availability = Availability(self._probe, name=self.name)
        self._meet = meet
        self.in_flight = 0
        self.chosen = 0

    async def _probe(self) -> None:
        await self._meet(self)
        await self.client.probe()


class RewardServers:
    """The reward servers of the settings.

    A server that fails several times in a row is not asked until it answers a probe. All serve one model: rewards of
    different models cannot be compared within a race.

    Args:
        settings: The servers' URLs. Each call may take an equal share of ``timeout_s``, so that after a server that
            hangs there is time for another one.
    """

    def __init__(self, settings: RewardSettings) -> None:
        timeout_s = _SHARE_OF_TIMEOUT * settings.timeout_s / len(settings.urls)
        self._replicas = [_Replica(settings, url, timeout_s, self._meet) for url in settings.urls]
        self._model: str | None = None
        self._choices = 0

    @property
    def known(self) -> Server | None:
        """A server that was asked what it is, if there is one."""
        return next((replica.client.known for replica in self._replicas if replica.client.known is not None), None)

    @property
    def max_length_tokens(self) -> int | None:
        """The longest text that every server takes; None if none says."""
        known = [replica.client.known for replica in self._replicas]
        return min((server.max_length_tokens for server in known if server and server.max_length_tokens), default=None)

    @property
    def n_away(self) -> int:
        return sum(replica.availability.away for replica in self._replicas)

    @property
    def available(self) -> bool:
        return self.n_away < len(self._replicas)

    async def meet(self) -> Server:
        """Return a server that was asked what it is; ask one if none was.

        Raises:
            RewardError: None can be reached, or be used as it is configured.
        """
        known = self.known
        return known if known is not None else await self._first_success(lambda replica: replica.client.server())

    async def classify(self, items: Sequence[bytes]) -> list[Score | RewardError]:
        """Return raw rewards of encoded items, in order.

        Raises:
            RewardUnavailable: No server is asked now.
            RewardError: Every server failed; the last one's error.
        """

        async def ask(replica: _Replica) -> list[Score | RewardError]:
            results = await replica.client.classify(items)
            replica.availability.succeeded()  # only here: a server that says what it is may still score nothing
            return results

        return await self._first_success(ask)

    async def readiness(self) -> Readiness:
        """Return ready if one server is; the detail names the problems of the others."""
        problems = await asyncio.gather(*(self._problem(replica) for replica in self._replicas))
        several = len(self._replicas) > 1
        detail = "; ".join(
            f"{replica.name}: {problem}" if several else problem
            for replica, problem in zip(self._replicas, problems, strict=True)
            if problem
        )
        facts = {"urls": [replica.name for replica in self._replicas]}
        if not all(problems) and (server := self.known) is not None:
            return Readiness(True, detail, {**facts, "model": server.model, "protocol": server.dialect.value})
        return Readiness(False, detail, facts)

    async def aclose(self) -> None:
        for replica in self._replicas:
            await replica.availability.aclose()
            await replica.client.aclose()

    async def _first_success(self, ask: Callable[[_Replica], Awaitable[Result]]) -> Result:
        error: RewardError = RewardUnavailable("no reward server answers now")
        tried: list[_Replica] = []
        while (replica := self._choose(tried)) is not None:
            tried.append(replica)
            replica.in_flight += 1
            try:
                await self._meet(replica)
                return await ask(replica)
            except RewardRefused:
                raise
            except RewardError as failure:
                error = strip_traceback(failure)
                replica.availability.failed(error)
            finally:
                replica.in_flight -= 1
        raise error

    def _choose(self, tried: Sequence[_Replica]) -> _Replica | None:
        choices = [replica for replica in self._replicas if not replica.availability.away and replica not in tried]
        if not choices:
            return None
        chosen = min(choices, key=lambda replica: (replica.in_flight, replica.chosen))
        self._choices += 1
        chosen.chosen = self._choices
        return chosen

    async def _meet(self, replica: _Replica) -> None:
        """Ask a new server what it is, and check that it serves the others' model.

        Raises:
            RewardError: It does not answer, or serves another model.
        """
        server = await replica.client.server()
        if server.model == self._model:
            return
        others = (other for other in self._replicas if other is not replica and not other.availability.away)
        if any(other.client.known is not None and other.client.known.model == self._model for other in others):
            replica.client.forget()
            raise RewardError(f"this reward server serves {server.model}, another one {self._model}")
        self._model = server.model

    async def _problem(self, replica: _Replica) -> str:
        """Return the reason why a server gives no rewards now; empty if it does."""
        if replica.availability.away:
            return f"gives no rewards: {replica.availability.reason}"
        try:
            await self._meet(replica)
            await replica.client.health()
        except RewardError as error:
            return error.message
        return ""
