"""The backend as the rest of the gateway sees it: draws from a pool of replicas, in OpenAI's terms."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Self

import httpx2
import orjson
import structlog

from gateway.backend.failures import CALL_ERRORS, error_body, from_status, refused_body, translate
from gateway.backend.flavours import FLAVOURS, Catalogue
from gateway.backend.hub import BackendHttp, HubClient
from gateway.backend.limit import ServerLimit, ServerLimits, Turn
from gateway.backend.reading import StreamReader, read_answer
from gateway.backend.replicas import Replica, Replicas
from gateway.backend.transport import AiohttpTransport, TraceConfigs
from gateway.errors import BackendFailed, BackendOverloaded, BackendProtocolError, BackendUnreachable, GatewayError
from gateway.metering import tokens_at_most
from gateway.settings import BackendSettings
from gateway.tls import client_context
from gateway.types import Answer, Delta, JsonObject, Prompt, Readiness, Sampling

_TAKEOVERS = 2

log = structlog.get_logger()


class BackendPool:
    """Draws answers from the replicas of one backend; implements ``gateway.types.Backend``.

    Connections open with the first draw and belong to the event loop that made it; ``aclose`` (or ``async with``)
    closes them.

    Args:
        settings: Where the replicas are, and how to reach them.
        limits: How many draws each server gets at a time; pools that share servers share these.
        trace_configs: aiohttp's hooks around each call.
    """

    def __init__(
        self, settings: BackendSettings, *, limits: ServerLimits | None = None, trace_configs: TraceConfigs = ()
    ) -> None:
        self._settings = settings
        self._limits = limits or ServerLimits()
        self._flavour = FLAVOURS[settings.kind]
        self._http = BackendHttp(
            AiohttpTransport(
                max_connections=settings.max_connections,
                tls=client_context(settings.ca_file) if settings.ca_file else None,
                trace_configs=trace_configs,
            ),
            api_key=settings.api_key,
            connect_timeout_s=settings.connect_timeout_s,
        )
        self._replicas = Replicas(settings.urls, self._connect, settings.unhealthy_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def check(self, sampling: Sampling) -> None:
        """Refuse what this backend cannot serve.

        Raises:
            UnsupportedField: Names the field.
        """
        self._flavour.check(sampling)

    def choose_replica(self) -> int:
        """The least loaded healthy replica; with none healthy, the one whose failure is longest ago."""
        return self._replicas.choose()

    async def complete(self, prompt: Prompt, *, seed: int, replica: int) -> Answer:
        """Draw one whole answer, from another replica where this one breaks the connection.

        Twice at most: while replicas restart one after the other, the one that took over may be the next.

        Raises:
            BackendError: No answer could be had, and why.
            InvalidRequest: The messages cannot be sent.
        """
        chosen = self._replicas.all[replica]
        for _ in range(_TAKEOVERS):
            try:
                return await self._complete(chosen, prompt, seed)
            except BackendUnreachable as error:
                spare = self._spare(chosen, error.message)
                if spare is None:
                    raise
                chosen = spare
        return await self._complete(chosen, prompt, seed)

    async def stream(self, prompt: Prompt, *, seed: int, replica: int) -> AsyncGenerator[Delta, None]:
        """Draw one answer piece by piece; before the first piece another replica may still take over.

        Raises:
            BackendError: No answer could be had, or no more of it, and why.
            InvalidRequest: The messages cannot be sent.
        """
        chosen = self._replicas.all[replica]
        begun = False
        try:
            async with aclosing(self._stream(chosen, prompt, seed)) as deltas:
                async for delta in deltas:
                    begun = True
                    yield delta
            return
        except BackendUnreachable as error:
            spare = None if begun else self._spare(chosen, error.message)
            if spare is None:
                raise
        async with aclosing(self._stream(spare, prompt, seed)) as deltas:
            async for delta in deltas:
                yield delta

    async def readiness(self) -> Readiness:
        """Ask every replica for its health; ready when at least one is well. Names those that are not."""
        problems = await asyncio.gather(*(self._problem(replica) for replica in self._replicas.all))
        facts = {replica.name: problem or "ok" for replica, problem in zip(self._replicas.all, problems, strict=True)}
        detail = "; ".join(f"{name}: {state}" for name, state in facts.items() if state != "ok")
        return Readiness(ready=not all(problems), detail=detail, facts={"replicas": facts})

    def limits(self) -> list[ServerLimit]:
        """Return the limits of the replicas that serve: the healthy ones, or all where none is."""
        healthy = [replica for replica in self._replicas.all if replica.healthy(self._settings.unhealthy_s)]
        return [self._limits.of(replica.root_url) for replica in healthy or self._replicas.all]

    def held(self) -> int:
        """What ended calls have left behind on the hub's clients."""
        return sum(replica.hub.held() for replica in self._replicas.all)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    def _connect(self, url: str) -> HubClient:
        return HubClient(self._http, url, timeout_s=self._settings.request_timeout_s)

    def _spare(self, broken: Replica, reason: str) -> Replica | None:
        spare = self._replicas.spare(broken)
        if spare is not None:
            log.warning("backend_replica_replaced", broken=broken.name, by=spare.name, reason=reason)
        return spare

    async def _complete(self, replica: Replica, prompt: Prompt, seed: int) -> Answer:
        """Draw one whole answer from this replica; a refused draw waits for its turn and is sent again."""
        with replica.drawing():
            turn = await self._turn(replica)
            while True:
                try:
                    async with turn:
                        return await self._complete_once(replica, prompt, seed)
                except BackendOverloaded:
                    if not await turn.again():
                        raise

    async def _complete_once(self, replica: Replica, prompt: Prompt, seed: int) -> Answer:
        arguments = self._flavour.arguments(prompt, seed, await self._catalogue(replica, prompt.adapter))
        with prompt.meter.call(max_tokens=prompt.sampling.max_tokens) as call:
            try:
                whole = await replica.hub.completion(arguments)
                body = self._flavour.correct(whole.body, whole.headers, prompt)
            except CALL_ERRORS as error:
                body = self._flavour.answer_in_refusal(refused_body(error), prompt)
                if body is None:
                    raise translate(error, self._flavour) from error
            try:
                answer = read_answer(body, self._flavour, prompt)
            except BackendProtocolError:
                call.tokens = tokens_at_most(body)
                raise
            call.count(answer.prompt_tokens, answer.completion_tokens)
            return answer

    async def _stream(self, replica: Replica, prompt: Prompt, seed: int) -> AsyncGenerator[Delta, None]:
        """Stream one answer from this replica; a draw refused before its first piece waits and is sent again."""
        with replica.drawing():
            turn = await self._turn(replica)
            begun = False
            while True:
                try:
                    async with turn, aclosing(self._stream_once(replica, prompt, seed)) as deltas:
                        async for delta in deltas:
                            begun = True
                            yield delta
                    return
                except BackendOverloaded:
                    if begun or not await turn.again():
                        raise

    async def _stream_once(self, replica: Replica, prompt: Prompt, seed: int) -> AsyncGenerator[Delta, None]:
        reader = StreamReader(self._flavour, prompt)
        arguments = self._flavour.arguments(prompt, seed, await self._catalogue(replica, prompt.adapter))
        with prompt.meter.call(max_tokens=prompt.sampling.max_tokens) as call:
            call.count(None, 0)
            try:
                async with aclosing(replica.hub.chunks(arguments, self._flavour.stream_options)) as chunks:
                    async for chunk in chunks:
                        deltas = list(reader.read(chunk))
                        call.count(*reader.drawn())
                        for delta in deltas:
                            yield delta
                        if reader.overrun:
                            break
            except CALL_ERRORS as error:
                if not reader.finished:
                    raise translate(error, self._flavour) from error
        yield reader.last()

    async def _turn(self, replica: Replica) -> Turn:
        """Begin a draw's way to the replica, which was asked for its capacity where it tells one."""
        limit = self._limits.of(replica.root_url)
        path = self._flavour.capacity_path
        if path is not None:
            await limit.learn_capacity(partial(self._capacity, replica, path))
        return limit.turn()

    async def _capacity(self, replica: Replica, path: str) -> int | None:
        """Draws that the replica takes at once, as it says itself; None where its answer has no such number.

        Raises:
            BackendUnreachable: It cannot be asked.
        """
        try:
            response = await self._get(replica, path)
        except BackendUnreachable:
            raise
        except GatewayError:
            return None
        return self._flavour.read_capacity(error_body(response.content)) if response.status_code == 200 else None

    async def _catalogue(self, replica: Replica, adapter: str | None) -> Catalogue:
        """What the replica serves, asked anew when the adapter is not among it: it may have been loaded since."""
        flavour = self._flavour
        if flavour.catalogue_path is None or (adapter is None and flavour.base_model):
            return Catalogue(flavour.base_model)
        known = replica.catalogue
        if known is None or (adapter is not None and adapter not in known.adapters):
            known = await replica.list_once(partial(self._list, replica, flavour.catalogue_path))
            if adapter is not None and adapter not in known.adapters:
                raise BackendFailed(f"the backend has not loaded the adapter {adapter}")
        return known

    async def _list(self, replica: Replica, path: str) -> Catalogue:
        response = await self._get(replica, path)
        if response.status_code != 200:
            raise from_status(response.status_code, error_body(response.content), self._flavour)
        try:
            return self._flavour.read_catalogue(orjson.loads(response.content))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise BackendProtocolError("the backend's list of models could not be read") from error

    async def _problem(self, replica: Replica) -> str | None:
        """What keeps the replica from serving; None when nothing does."""
        try:
            with replica.drawing():
                response = await self._get(replica, self._flavour.health_path)
                if response.status_code == 200 and await self._refuses_key(replica):
                    return "it refuses the gateway's API key"
        except GatewayError as error:
            return error.message
        status = response.status_code
        return None if status == 200 else f"its health check answers with status {status}"

    async def _refuses_key(self, replica: Replica) -> bool:
        """Ask where the server looks at keys: every server tells its health to anybody."""
        guarded = await self._get(replica, self._flavour.guarded_path, self._flavour.guarded_body)
        return guarded.status_code in (401, 403)

    async def _get(self, replica: Replica, path: str, body: JsonObject | None = None) -> httpx2.Response:
        """Call one of the server's routes: by GET, or by POST where there is a body."""
        url, timeout_s = replica.root_url + path, self._settings.connect_timeout_s
        try:
            if body is not None:
                return await self._http.post(url, json=body, timeout=timeout_s)
            return await self._http.get(url, timeout=timeout_s)
        except CALL_ERRORS as error:
            raise translate(error, self._flavour) from error
