"""Calls to one replica: a draw whole or streamed, its list of adapters, its health; errors in the gateway's terms."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

import httpx2
import orjson
import structlog

from gateway.backend.failures import CALL_ERRORS, error_body, from_status, refused_body, translate
from gateway.backend.flavours import Catalogue, Flavour
from gateway.backend.hub import BackendHttp, HubClient
from gateway.backend.identify import Identity, contradiction, flavour_of, identify
from gateway.backend.limit import ServerLimit, ServerLimits, Turn
from gateway.backend.reading import StreamReader, read_answer
from gateway.backend.replicas import Replica
from gateway.backend.transport import AiohttpTransport, TraceConfigs
from gateway.errors import (
    AdapterMissing,
    BackendError,
    BackendFailed,
    BackendProtocolError,
    BackendUnreachable,
    GatewayError,
    UnsupportedField,
)
from gateway.metering import tokens_at_most
from gateway.settings import BackendSettings
from gateway.tls import client_context
from gateway.types import Answer, Delta, JsonObject, Prompt

# A name that comes out of a policy document becomes a path on the server.
_ADAPTER_NAME = re.compile(r"rft-[0-9-]{8,10}-[0-9a-f]{8,64}")
_MAX_CONNECTIONS = 1024  # to one replica
_LOAD_TIMEOUT_S = 60.0
_KIND_WAIT_S = 1.0
_ASK_KIND_AGAIN_S = 2.0
_IDENTITY_HOLDS_S = 30.0

log = structlog.get_logger()


class Calls:
    """Makes calls to the replicas of one backend, over connections that they share.

    Args:
        settings: How to reach them.
        limits: How many draws each server gets at a time.
        trace_configs: aiohttp's hooks around each call.
    """

    def __init__(self, settings: BackendSettings, limits: ServerLimits, *, trace_configs: TraceConfigs = ()) -> None:
        self._settings = settings
        self._limits = limits
        self._tool_replicas: set[Replica] = set()
        self.flavour: Flavour = flavour_of(settings.kind)
        self._identified = False
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._asked_kind_at_s: float | None = None
        self._asking_kind: asyncio.Task[Identity | None] | None = None
        self._http = BackendHttp(
            AiohttpTransport(
                max_connections=_MAX_CONNECTIONS,
                tls=client_context(settings.ca_file) if settings.ca_file else None,
                trace_configs=trace_configs,
            ),
            api_key=settings.api_key,
            connect_timeout_s=settings.connect_timeout_s,
        )

    def connect(self, url: str) -> HubClient:
        """Return the client for a replica at a URL; nothing is connected yet."""
        return HubClient(self._http, url, timeout_s=self._settings.request_timeout_s)

    async def aclose(self) -> None:
        """Close every connection."""
        for task in (*self._loading.values(), *([self._asking_kind] if self._asking_kind else [])):
            task.cancel()
        await self._http.aclose()

    async def complete(self, replica: Replica, prompt: Prompt, seed: int) -> Answer:
        """Draw one whole answer.

        Raises:
            BackendError: No answer could be had, and why.
            InvalidRequest: The messages cannot be sent.
        """
        await self._check_tools(replica, prompt)
        arguments = self.flavour.arguments(prompt, seed, await self._catalogue(replica, prompt.adapter))
        try:
            return await self._complete(replica, arguments, prompt)
        except BackendFailed:
            await self._check_adapter(replica, prompt.adapter)
            raise

    async def _complete(self, replica: Replica, arguments: JsonObject, prompt: Prompt) -> Answer:
        with prompt.meter.call(max_tokens=prompt.sampling.max_tokens) as call:
            try:
                whole = await replica.hub.completion(arguments)
                body = self.flavour.correct(whole.body, whole.headers, prompt)
            except CALL_ERRORS as error:
                body = self.flavour.answer_in_refusal(refused_body(error), prompt)
                if body is None:
                    raise translate(error, self.flavour) from error
            try:
                answer = read_answer(body, self.flavour, prompt)
            except BackendError:
                if isinstance(body, dict) and body.get("choices"):
                    call.tokens = tokens_at_most(body)
                raise
            call.count(answer.prompt_tokens, answer.completion_tokens)
            return answer

    async def stream(self, replica: Replica, prompt: Prompt, seed: int) -> AsyncGenerator[Delta, None]:
        """Draw one answer piece by piece.

        Raises:
            BackendError: No answer could be had, or no more of it, and why.
            InvalidRequest: The messages cannot be sent.
        """
        await self._check_tools(replica, prompt)
        arguments = self.flavour.arguments(prompt, seed, await self._catalogue(replica, prompt.adapter))
        try:
            async with aclosing(self._stream(replica, arguments, prompt)) as deltas:
                async for delta in deltas:
                    yield delta
        except BackendFailed:
            await self._check_adapter(replica, prompt.adapter)
            raise

    async def _stream(self, replica: Replica, arguments: JsonObject, prompt: Prompt) -> AsyncGenerator[Delta, None]:
        reader = StreamReader(self.flavour, prompt)
        with prompt.meter.call(max_tokens=prompt.sampling.max_tokens) as call:
            call.count(None, 0)
            try:
                async with aclosing(replica.hub.chunks(arguments, self.flavour.stream_options)) as chunks:
                    async for chunk in chunks:
                        deltas = list(reader.read(chunk))
                        call.count(*reader.drawn())
                        for delta in deltas:
                            yield delta
                        if reader.overrun:
                            break
            except CALL_ERRORS as error:
                if not reader.finished:
                    raise translate(error, self.flavour) from error
        yield reader.last()

    async def _check_tools(self, replica: Replica, prompt: Prompt) -> None:
        """Refuse tools that the replica would leave out of the prompt.

        Raises:
            UnsupportedField: Its chat template has no place for them.
        """
        path = self.flavour.properties_path
        if path is None or not prompt.sampling.tools or replica in self._tool_replicas:
            return
        response = await self._get(replica, path)
        if response.status_code == 200 and not self.flavour.shows_tools(error_body(response.content)):
            raise UnsupportedField("tools: the chat template of this backend's model has none", param="tools")
        self._tool_replicas.add(replica)

    async def know(self, replica: Replica) -> None:
        """Find out the servers' kind where the settings leave it open; a draw waits a moment for it, once."""
        if self._settings.kind != "auto" or self._identified:
            return
        now_s = asyncio.get_running_loop().time()
        if self._asking_kind is None:
            if self._asked_kind_at_s is not None and now_s - self._asked_kind_at_s < _ASK_KIND_AGAIN_S:
                return
            self._asked_kind_at_s = now_s
            self._asking_kind = asyncio.create_task(self.identify(replica), context=contextvars.Context())
            self._asking_kind.add_done_callback(self._kind_answered)
        await asyncio.wait([self._asking_kind], timeout=_KIND_WAIT_S)

    async def identify(self, replica: Replica) -> Identity | None:
        """Ask a replica what it is, again after a while; with kind auto it is spoken to accordingly from then on."""
        now_s = asyncio.get_running_loop().time()
        if replica.identity is not None and now_s - replica.identified_at_s < _IDENTITY_HOLDS_S:
            return replica.identity
        replica.identified_at_s = now_s
        found = await identify(partial(self._json, replica))
        replica.identity = found
        if found is not None and self._settings.kind == "auto" and not self._identified:
            self._identified = True
            self.flavour = flavour_of(found.kind)
            log.info("backend_identified", replica=replica.name, kind=found.kind, server=found.name)
        return found

    async def identify_now_and_then(self, replica: Replica) -> Identity | None:
        """Ask a replica what it is, unless it was asked lately and did not say."""
        now_s = asyncio.get_running_loop().time()
        return await self.identify(replica) if now_s - replica.identified_at_s >= _IDENTITY_HOLDS_S else None

    def _kind_answered(self, asking: asyncio.Task[Identity | None]) -> None:
        self._asking_kind = None
        if not asking.cancelled():
            asking.exception()

    async def post(self, replica: Replica, path: str, body: JsonObject) -> JsonObject:
        """Return the JSON object that the replica answers to a body; an empty one where it gives none.

        Raises:
            GatewayError: It could not be asked.
        """
        response = await self._get(replica, path, body)
        return error_body(response.content) if response.status_code == 200 else {}

    async def _json(self, replica: Replica, path: str) -> Any:
        """Return the JSON at a path; None where there is none."""
        try:
            response = await self._get(replica, path)
            return orjson.loads(response.content) if response.status_code == 200 else None
        except (GatewayError, ValueError):
            return None

    def strangeness(self, replica: Replica) -> str | None:
        """Return in words how a replica differs from what the settings say, or from the other replicas."""
        if replica.identity is None:
            return None
        wrong = contradiction(self._settings.kind, replica.identity)
        if wrong is None and self._identified and flavour_of(replica.identity.kind) is not self.flavour:
            return f"it is {replica.identity.name}, and other replicas are of another kind: one policy needs one kind"
        return wrong

    async def learn(self, replica: Replica) -> None:
        """Find out what the replica is and how many draws it takes at once; one that cannot be asked is asked later."""
        await self.know(replica)
        with contextlib.suppress(GatewayError):
            await self._learn_capacity(replica)

    async def turn(self, replica: Replica) -> Turn:
        """Begin a draw's way to the replica, which was asked for its capacity where it tells one."""
        await self._learn_capacity(replica)
        return self.limit(replica).turn()

    async def _learn_capacity(self, replica: Replica) -> None:
        path = self.flavour.capacity_path
        if path is not None:
            await self.limit(replica).learn_capacity(partial(self._capacity, replica, path))

    def limit(self, replica: Replica) -> ServerLimit:
        """Return the limit of draws at the replica."""
        return self._limits.of(replica.root_url)

    def has_room(self, replica: Replica) -> bool:
        """Return whether one more draw could go to the replica at once."""
        limit = self.limit(replica)
        return limit.in_flight < limit.limit

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
        return self.flavour.read_capacity(error_body(response.content)) if response.status_code == 200 else None

    async def health(self, replica: Replica) -> str | None:
        """Return what the replica's health check finds; None when it is well.

        Raises:
            GatewayError: It could not be asked.
        """
        response = await self._get(replica, self.flavour.health_path)
        status = response.status_code
        if status != 200:
            return f"its health check answers with status {status}"
        return "it refuses the gateway's API key" if await self._refuses_key(replica) else None

    async def _refuses_key(self, replica: Replica) -> bool:
        """Ask where the server looks at keys: every server tells its health to anybody."""
        guarded = await self._get(replica, self.flavour.guarded_path, self.flavour.guarded_body)
        return guarded.status_code in (401, 403)

    async def _check_adapter(self, replica: Replica, adapter: str | None) -> None:
        """Ask, after an error, whether the replica still has the adapter: it may have lost it behind our back.

        Raises:
            AdapterMissing: It has not.
        """
        if adapter is None or self.flavour.catalogue_path is None:
            return
        replica.catalogue = None
        try:
            await self._catalogue(replica, adapter)
        except AdapterMissing:
            raise
        except GatewayError:
            return  # the first error says more

    async def _catalogue(self, replica: Replica, adapter: str | None) -> Catalogue:
        """What the replica serves, asked anew when the adapter is not among it: it may have been loaded since."""
        flavour = self.flavour
        if flavour.catalogue_path is None or (adapter is None and flavour.base_model):
            return Catalogue(flavour.base_model)
        known = replica.catalogue
        if known is None or (adapter is not None and adapter not in known.adapters):
            known = await replica.list_once(partial(self._list, replica, flavour.catalogue_path))
            if adapter is not None:
                replica.set_missing(adapter, adapter not in known.adapters)
                if adapter not in known.adapters:
                    self._load_again(replica, adapter)
                    raise AdapterMissing(f"the backend has not loaded the adapter {adapter}")
        return known

    def _load_again(self, replica: Replica, adapter: str) -> None:
        """Have a server that lost an adapter load it again, where it can and the settings say where it lies."""
        path, folder = self.flavour.load_adapter_path, self._settings.adapters_dir
        if path is None or not folder or _ADAPTER_NAME.fullmatch(adapter) is None or replica.root_url in self._loading:
            return
        body = {"lora_name": adapter, "lora_path": f"{folder.rstrip('/')}/{adapter}"}
        task = asyncio.create_task(self._load(replica, adapter, path, body), context=contextvars.Context())
        self._loading[replica.root_url] = task
        task.add_done_callback(lambda _: self._loading.pop(replica.root_url, None))

    async def _load(self, replica: Replica, adapter: str, path: str, body: JsonObject) -> None:
        try:
            response = await self._http.post(replica.root_url + path, json=body, timeout=_LOAD_TIMEOUT_S)
        except CALL_ERRORS as error:
            log.error("adapter_not_loaded", replica=replica.name, adapter=adapter, error=type(error).__name__)
            return
        if response.status_code != 200:
            log.error("adapter_not_loaded", replica=replica.name, adapter=adapter, status=response.status_code)
            return
        log.info("adapter_loaded_again", replica=replica.name, adapter=adapter)
        replica.catalogue = None
        replica.set_missing(adapter, missing=False)

    async def _list(self, replica: Replica, path: str) -> Catalogue:
        response = await self._get(replica, path)
        if response.status_code != 200:
            raise from_status(response.status_code, error_body(response.content), self.flavour)
        try:
            return self.flavour.read_catalogue(orjson.loads(response.content))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise BackendProtocolError("the backend's list of models could not be read") from error

    async def _get(self, replica: Replica, path: str, body: JsonObject | None = None) -> httpx2.Response:
        """Call one of the server's routes: by GET, or by POST where there is a body."""
        url, timeout_s = replica.root_url + path, self._settings.connect_timeout_s
        try:
            if body is not None:
                return await self._http.post(url, json=body, timeout=timeout_s)
            return await self._http.get(url, timeout=timeout_s)
        except CALL_ERRORS as error:
            raise translate(error, self.flavour) from error
