"""HTTP to one reward server: learn what it is, check that its rewards are raw, call it.

A call by aiohttp costs a quarter of httpx2's CPU, and a race of N answers makes up to N calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import structlog

from gateway.errors import RewardError, RewardRefused, RewardTimeout, strip_traceback
from gateway.reward import wire
from gateway.settings import RewardSettings
from gateway.single_flight import SingleFlight
from gateway.tls import client_context
from gateway.types import Score

MAX_ANSWER_BYTES = 16_000_000
HEALTH_TIMEOUT_S = 2.0
IDENTIFY_PAUSE_S = 1.0  # between attempts to learn what a server is
MAX_PARTS = 32  # further calls that one refused batch may cost, to find the answers that were refused
_REFUSED = frozenset({400, 404, 413, 422})
# Texts whose raw rewards are unlikely to be all between 0 and 1.
_PROBES = ("What is two and two? Four.", "qq zz qq zz", "Name a colour. I cannot say, and neither can you.", "a")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Server:
    """A server's description of itself. ``max_length_tokens``: its longest text; None if it does not say."""

    dialect: wire.Dialect
    model: str
    max_length_tokens: int | None = None


class _RefusedError(RewardError):
    """The server refuses this call, by a status of ``_REFUSED``."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ClassifyClient:
    """Calls one reward server. Its session opens on first use, inside the running loop."""

    def __init__(self, settings: RewardSettings, url: str, *, timeout_s: float) -> None:
        self._settings = settings
        self._url = url
        self._timeout_s = timeout_s
        self._tls = client_context(settings.ca_file) if settings.ca_file else None
        self._session: aiohttp.ClientSession | None = None
        self._known: Server | None = None
        self._identifying: SingleFlight[Server] = SingleFlight(self._identified)
        self._refusal: RewardError | None = None
        self._refused_until_s = 0.0

    @property
    def known(self) -> Server | None:
        """The server, if it was asked what it is."""
        return self._known

    async def server(self) -> Server:
        """Return what the server is; ask it on first use and again after it was lost.

        Raises:
            RewardError: It cannot be reached, or cannot be used as it is configured.
        """
        if self._known is not None:
            return self._known
        if self._refusal is not None and asyncio.get_running_loop().time() < self._refused_until_s:
            raise type(self._refusal)(self._refusal.message)
        identifying = self._identifying.start(self._identify)
        try:
            return await asyncio.shield(identifying)
        except asyncio.CancelledError:
            if identifying.cancelled():
                raise RewardError("scoring has stopped") from None
            raise

    def forget(self) -> None:
        """Ask the server again what it is, before the next call."""
        self._known = None

    async def classify(self, items: Sequence[bytes]) -> list[Score | RewardError]:
        """Return raw rewards of encoded items, in order. An item that the server refuses loses only its own reward.

        If no item has a reward, a fixed text shows if the server or the items are at fault.

        Raises:
            RewardTimeout: The server was too slow.
            RewardError: The server cannot be reached, gives no reward at all, or its answer is malformed.
        """
        server = await self.server()
        try:
            results = await self._classify(server, items)
        except _RefusedError as refusal:
            if await self._has_changed(server):
                results = await self._classify(await self.server(), items)
            elif refusal.status == 404:
                raise
            else:
                results = await self._in_parts(server, items, [MAX_PARTS])
        if not any(isinstance(result, Score) for result in results):
            await self._check_scoring(server)
        return results

    async def probe(self) -> None:
        """Score a fixed answer; raise RewardError if that gives no reward."""
        await self._check_scoring(await self.server())

    async def health(self) -> None:
        """Raise RewardError if the server says that it cannot serve."""
        await self._call("GET", "/health", timeout_s=HEALTH_TIMEOUT_S)

    async def aclose(self) -> None:
        self._identifying.cancel()
        if self._session is not None:
            await self._session.close()

    async def _in_parts(
        self, server: Server, items: Sequence[bytes], calls_left: list[int]
    ) -> list[Score | RewardError]:
        """Score refused items by halves, until each item at fault is alone."""
        if len(items) == 1:
            return [RewardRefused("the reward server refuses this answer")]
        results: list[Score | RewardError] = []
        middle = len(items) // 2
        for part in (items[:middle], items[middle:]):
            if calls_left[0] == 0:
                results += [RewardRefused("the reward server refuses this answer or its neighbours") for _ in part]
                continue
            calls_left[0] -= 1
            try:
                results += await self._classify(server, part)
            except _RefusedError:
                results += await self._in_parts(server, part, calls_left)
        return results

    async def _check_scoring(self, server: Server) -> None:
        text, conversation = wire.text(_PROBES[0]), wire.conversation([{"role": "user", "content": _PROBES[1]}], "a")
        [result] = await self._classify(server, [text if self._settings.tokenizer else conversation])
        if isinstance(result, RewardError):
            raise result

    async def _listed(self) -> Server:
        dialect, models = wire.served_models(await self._call("GET", "/v1/models"))
        model = self._settings.url_model or next(iter(models), "")
        if model not in models:
            raise RewardError(f"the reward server does not serve {model or 'any model'}")
        return Server(dialect, model, models[model])

    async def _has_changed(self, server: Server) -> bool:
        """Return True if the server was restarted with another model, which explains a refusal; then ask it again."""
        if await self._listed() == server:
            return False
        self._known = None
        return True

    async def _identify(self) -> Server:
        server = await self._listed()
        dialect = server.dialect
        if dialect is not wire.Dialect.OURS and not self._settings.tokenizer:
            raise RewardError(f"a {dialect} reward server reads only text: set GATEWAY_REWARD__TOKENIZER")
        if dialect is wire.Dialect.VLLM:
            await self._check_rewards_are_raw(server)
        return server

    async def _check_rewards_are_raw(self, server: Server) -> None:
        probes = [wire.text(probe) for probe in _PROBES]
        raw = await self._classify(server, probes)
        activated = await self._classify(server, probes, activated=True)
        if wire.is_squashed(
            [score.reward for score in raw if isinstance(score, Score)],
            [score.reward for score in activated if isinstance(score, Score)],
        ):
            raise RewardError("the reward server ignores use_activation and gives probabilities, not raw rewards")

    def _identified(self, task: asyncio.Task[Server]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._known, self._refusal = task.result(), None
            _log.info("reward_server_met", url=self._url, protocol=self._known.dialect.value, model=self._known.model)
        elif isinstance(error, RewardError):
            # Stripped before those who wait get it; a copy is kept, because each of them extends the traceback.
            self._refusal = type(error)(strip_traceback(error).message)
            self._refused_until_s = asyncio.get_running_loop().time() + IDENTIFY_PAUSE_S
            _log.warning("reward_server_refused", url=self._url, error=error.message)

    async def _classify(
        self, server: Server, items: Sequence[bytes], *, activated: bool = False
    ) -> list[Score | RewardError]:
        body = wire.request_body(server.dialect, server.model, items, activated=activated)
        return wire.scores(server.dialect, await self._call("POST", "/classify", body), len(items))

    async def _call(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float | None = None
    ) -> bytes:
        # Stripped: a stream of aiohttp's keeps the error that broke it, whose traceback holds the received bytes.
        try:
            try:
                return await self._send(method, path, body, timeout_s)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # The server closed an idle connection. A second call is safe: scoring changes nothing there.
                return await self._send(method, path, body, timeout_s)
        except TimeoutError as error:
            raise RewardTimeout("the reward server was too slow") from strip_traceback(error)
        except aiohttp.ClientConnectionError as error:
            self._known = None  # another server may answer at the same URL
            raise RewardError("the reward server cannot be reached") from strip_traceback(error)
        except aiohttp.ClientError as error:
            message = f"the reward server's answer broke off: {type(error).__name__}"
            raise RewardError(message) from strip_traceback(error)

    async def _send(self, method: str, path: str, body: bytes | None, timeout_s: float | None) -> bytes:
        timeout = aiohttp.ClientTimeout(total=timeout_s or self._timeout_s)
        request = self._open_session().request(
            method, self._url + path, data=body, timeout=timeout, allow_redirects=False
        )
        async with request as response:
            if response.status != 200:
                message = f"the reward server answered {path} with status {response.status}"
                raise _RefusedError(message, response.status) if response.status in _REFUSED else RewardError(message)
            received = bytearray()
            async for chunk in response.content.iter_any():
                received += chunk
                if len(received) > MAX_ANSWER_BYTES:
                    raise RewardError("the reward server's answer is too large")
            return bytes(received)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"Content-Type": "application/json"}
            if self._settings.api_key:
                headers["Authorization"] = f"Bearer {self._settings.api_key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls or True),
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session
