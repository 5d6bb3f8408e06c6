"""The reward model as a service: POST /classify in vLLM's shape, so that many gateways share one model.

Beyond vLLM it takes whole conversations (``{"messages": […]}``, the answer as the last turn) as ``input`` items, which
also serves models that read prompt and answer as a pair. Raw rewards come with ``use_activation: false`` only; the
default squashes them to probabilities, as vLLM's does.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import RewardError, SettingsError
from gateway.reward import batcher, wire
from gateway.reward.batcher import QueueFull
from gateway.reward.local import Conversation, LocalScorer, Scored
from gateway.reward.server_metrics import ServerMetrics
from gateway.settings import RewardSettings, Settings
from gateway.upgrades import NoUpgradesProtocol

MAX_BODY_BYTES = 32_000_000
UVICORN: dict[str, Any] = {"http": NoUpgradesProtocol, "ws": "none", "log_config": None, "access_log": False}
"""uvicorn's options, for this program and its tests."""
CLIENT_GONE = 499  # for the metrics: no client reads it

_ERROR_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "RequestTooLargeError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}

_log = structlog.get_logger()

if TYPE_CHECKING:
    from gateway.reward.model import RewardModel

Handler = Callable[[Request], Awaitable[Response]]


def create_app(scorer: LocalScorer, settings: RewardSettings, metrics: ServerMetrics) -> Starlette:
    """Build the ASGI application. It answers 503 until the model is loaded, and closes the scorer when it stops."""
    service = _Service(scorer, settings)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await scorer.aclose()

    async def show_metrics(_request: Request) -> Response:
        body, content_type = metrics.render(scorer.waiting)
        return Response(body, headers={"Content-Type": content_type})

    async def on_http_error(_request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return _error(error.status_code, error.detail)
        return _error(500, "internal error")  # Starlette raises it again, so that the server logs the traceback

    return Starlette(
        routes=[
            Route("/classify", metrics.counted(service.authorized(service.classify)), methods=["POST"]),
            Route("/v1/models", service.authorized(service.models), methods=["GET"]),
            Route("/health", service.health, methods=["GET"]),
            Route("/metrics", show_metrics, methods=["GET"]),
        ],
        exception_handlers={HTTPException: on_http_error, Exception: on_http_error},
        lifespan=lifespan,
    )


def serve(settings: Settings) -> None:
    """Run ``python -m gateway reward``: listen at once, load, serve until SIGTERM, then finish running calls.

    Raises:
        SettingsError: No local model is configured, or it cannot be loaded.
    """
    if not settings.reward.model:
        raise SettingsError("python -m gateway reward needs GATEWAY_REWARD__MODEL")
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    metrics = ServerMetrics()
    scorer = LocalScorer(settings.reward, observe=metrics.batch)
    config = uvicorn.Config(
        create_app(scorer, settings.reward, metrics),
        host=settings.reward.host,
        port=settings.reward.port,
        **UVICORN,
        timeout_graceful_shutdown=int(settings.shutdown_s),
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    loading = asyncio.create_task(scorer.loaded())
    await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
    if loading.done() and loading.exception() is not None:
        server.should_exit = True
    await serving
    loading.cancel()
    if loading.done():
        loading.result()


class _Service:
    def __init__(self, scorer: LocalScorer, settings: RewardSettings) -> None:
        self._scorer = scorer
        self._authorization = f"Bearer {settings.api_key}".encode() if settings.api_key else b""
        self._max_items = batcher.MAX_QUEUE
        self._created = int(time.time())

    def authorized(self, handler: Handler) -> Handler:
        """Return ``handler``, for callers with the key only."""

        async def checked(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if self._authorization and not hmac.compare_digest(given, self._authorization):
                return _error(401, "a valid API key is required")
            return await handler(request)

        return checked

    async def health(self, _request: Request) -> Response:
        """Answer 200 with an empty body once the model is loaded, before that 503 with the reason."""
        readiness = await self._scorer.readiness()
        return Response() if readiness.ready else _error(503, readiness.detail)

    async def models(self, _request: Request) -> Response:
        try:
            model = self._scorer.model()
        except RewardError as error:
            return _error(503, error.message)
        card = {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": wire.OWNER,
            "root": model.name,
            "parent": None,
            "max_model_len": model.max_length_tokens,
        }
        return _json(orjson.dumps({"object": "list", "data": [card]}))

    async def classify(self, request: Request) -> Response:
        try:
            model = self._scorer.model()
        except RewardError as error:
            return _error(503, error.message)
        try:
            body = orjson.loads(await _read(request))
        except orjson.JSONDecodeError:
            return _error(400, "the body is not JSON")
        except _TooLargeError:
            return _error(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        try:
            items = [item if isinstance(item, str) else Conversation(*item) for item in wire.parse_items(body)]
            activated = wire.parse_activation(body)
        except ValueError as error:
            return _error(400, str(error))
        if body.get("model") not in (None, model.name):
            return _error(404, "the model asked for is not served here", param="model")
        if len(items) > self._max_items:
            return _error(413, f"one call may score {self._max_items} inputs", param="input")
        if not model.reads_text and any(isinstance(item, str) for item in items):
            return _error(400, f"{model.name} reads a prompt and its answer apart: send {_CONVERSATION}", param="input")
        return await self._answer(request, model, items, activated=activated)

    async def _answer(
        self, request: Request, model: RewardModel, items: list[Conversation | str], *, activated: bool
    ) -> Response:
        scoring = asyncio.ensure_future(self._scorer.score_many(items))
        leaving = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({scoring, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not scoring.done():
                return Response(status_code=CLIENT_GONE)
            results = scoring.result()
        except QueueFull as error:
            return _error(429, error.message)
        except RewardError as error:
            return _error(503, error.message)
        finally:
            scoring.cancel()
            leaving.cancel()
        failures = [result.message for result in results if isinstance(result, RewardError)]
        if len(failures) == len(results):
            return _error(500, failures[0])
        rows = [(result.score, result.tokens) if isinstance(result, Scored) else (None, 0) for result in results]
        return _json(wire.classification(model.name, rows, activated=activated))


_CONVERSATION = '{"messages": [..., {"role": "assistant", "content": answer}]}'


class _TooLargeError(Exception):
    """The body is over ``MAX_BODY_BYTES``."""


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _TooLargeError
    return bytes(body)


async def _disconnected(request: Request) -> None:
    """Wait until the client has gone; its request must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _error(status: int, message: str, *, param: str | None = None) -> Response:
    kind = _ERROR_TYPES.get(status, "InternalServerError")
    response = _json(
        orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": status}}), status
    )
    if status in {429, 503}:
        response.headers["Retry-After"] = "1"
    return response
