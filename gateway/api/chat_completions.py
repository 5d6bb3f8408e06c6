"""``POST /v1/chat/completions``: authenticate, validate, translate, and render the answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack

import structlog
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from gateway.api import errors, render, sse
from gateway.api.auth import ApiKeys
from gateway.api.connection import EventStream, cancel_on_disconnect, read_body
from gateway.api.json_response import json_response
from gateway.api.keyfile import Scope
from gateway.api.limits import Limiter
from gateway.api.openapi import ERRORS, request_body
from gateway.api.schemas import ChatCompletion, ChatCompletionRequest
from gateway.api.translate import translate
from gateway.best_of_n.answering import Answerer, Job
from gateway.errors import GatewayError
from gateway.settings import Settings


class ChatCompletions:
    """Serves chat completions over HTTP.

    Args:
        answerer: Answers the requests.
        keys: Authenticates callers.
        limiter: Enforces the limits of their keys.
        settings: Bounds of bodies and requests.
        on_error: Called with an error that a caller reads in a stream whose status has been sent.
    """

    def __init__(
        self,
        answerer: Answerer,
        keys: ApiKeys,
        limiter: Limiter,
        settings: Settings,
        *,
        on_error: Callable[[GatewayError], None],
    ) -> None:
        self._answerer = answerer
        self._keys = keys
        self._limiter = limiter
        self._api = settings.api
        self._best_of_max = settings.race.best_of_max
        self._on_error = on_error

    async def respond(self, http: Request) -> Response:
        """Answer one request."""
        started_s = time.perf_counter()
        key = self._keys.authenticate(http.headers.get("authorization"), Scope.CHAT)
        if key is not None:
            structlog.contextvars.bind_contextvars(key=key.name)
        visit = await self._limiter.enter(key, race=True)
        with ExitStack() as leaving:
            leaving.callback(visit.leave)
            http.state.visit = visit  # error responses carry the headers of the key's limits too
            body = await self._parse(http)
            request = translate(
                body, best_of_header=http.headers.get("x-best-of"), api=self._api, best_of_max=self._best_of_max
            )
            job = self._answerer.accept(
                request, id=f"chatcmpl-{uuid.uuid4().hex}", key_id=key.id if key else None, started_s=started_s
            )
            visit.cost_tokens = job.cost_tokens
            created = int(time.time())
            if not body.stream:
                outcome = await cancel_on_disconnect(http.receive, self._answerer.answer(job))
                completion = render.completion(outcome, completion_id=job.id, created=created, model=body.model)
                return json_response(completion, headers=render.headers(outcome) | visit.headers())
            chunks = sse.Chunks(
                completion_id=job.id,
                created=created,
                model=body.model,
                include_usage=bool(body.stream_options and body.stream_options.include_usage),
            )
            stream = self._stream(job, chunks, on_end=leaving.pop_all().close)
            await stream.start(http.receive)
            stream.headers.update(chunks.headers | visit.headers())
            return stream

    async def _parse(self, http: Request) -> ChatCompletionRequest:
        body = await read_body(http, limit_bytes=self._api.max_body_bytes, timeout_s=self._api.body_timeout_s)
        try:
            return ChatCompletionRequest.model_validate_json(body)
        except ValidationError as error:
            raise errors.invalid_body(error) from None

    def _stream(self, job: Job, chunks: sse.Chunks, on_end: Callable[[], None]) -> EventStream:
        def error_event(error: GatewayError) -> bytes:
            self._on_error(error)
            return sse.error_event(error)

        return EventStream(
            chunks.events(self._answerer.stream(job)),
            keep_alive_s=self._api.keep_alive_s,
            keep_alive=sse.KEEP_ALIVE,
            on_error=error_event,
            on_end=on_end,
        )


def routes(service: ChatCompletions) -> APIRouter:
    """Return the route, for the app to include."""
    router = APIRouter(tags=["chat"])

    @router.post(
        "/v1/chat/completions",
        summary="Answer with the best of N candidates",
        responses={200: {"model": ChatCompletion, "content": {"text/event-stream": {}}}, **ERRORS},
        openapi_extra=request_body(
            ChatCompletionRequest,
            header={
                "name": "X-Best-Of",
                "schema": {"type": "integer", "minimum": 1},
                "description": "N, over the body",
            },
        ),
    )
    async def chat_completions(request: Request) -> Response:
        return await service.respond(request)

    return router
