"""``POST /v1/feedback``: write a caller's rating of an answer into the journal."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from gateway.api import errors
from gateway.api.auth import ApiKeys
from gateway.api.connection import read_body
from gateway.api.json_response import json_response
from gateway.api.keyfile import Scope
from gateway.api.limits import Limiter
from gateway.api.openapi import ERRORS, request_body
from gateway.api.schemas import FeedbackRequest, FeedbackResponse
from gateway.errors import NotReady
from gateway.journal.record import feedback_record
from gateway.journal.writer import Journal
from gateway.settings import ApiSettings


def routes(settings: ApiSettings, keys: ApiKeys, limiter: Limiter, journal: Journal) -> APIRouter:
    router = APIRouter(tags=["feedback"])

    @router.post(
        "/v1/feedback",
        summary="Rate an answer",
        responses={
            200: {"model": FeedbackResponse},
            **{status: ERRORS[status] for status in (400, 401, 403, 408, 413, 415, 429, 503)},
        },
        openapi_extra=request_body(FeedbackRequest),
    )
    async def feedback(request: Request) -> Response:
        key = keys.authenticate(request.headers.get("authorization"), Scope.FEEDBACK)
        visit = await limiter.enter(key, race=False)
        request.state.visit = visit
        body = await read_body(request, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)
        try:
            rated = FeedbackRequest.model_validate_json(body)
        except ValidationError as error:
            raise errors.invalid_body(error) from None
        # The rating is all that this request is for: if it cannot be made durable, its caller must know.
        record = feedback_record(
            completion_id=rated.id, rating=rated.rating, comment=rated.comment, key_id=key.id if key else None
        )
        if not await journal.append(record):
            raise NotReady("the rating could not be recorded; try again later")
        return json_response({"id": rated.id, "object": "feedback", "recorded": True}, headers=visit.headers())

    return router
