"""The OpenAPI document. Routes read and validate their bodies themselves, so the bodies are described here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from gateway.api.json_response import json_response
from gateway.api.schemas import ChatCompletionRequest, ErrorResponse, FeedbackRequest
from gateway.api.translate import MAX_STOPS, NEUTRAL
from gateway.settings import Settings

_BODIES: list[type[BaseModel]] = [ChatCompletionRequest, FeedbackRequest]
_REF = "#/components/schemas/{model}"

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is malformed, or a field is not supported; `param` names the field",
        401: "No API key, or an unknown one",
        403: "The API key lacks the scope for this",
        404: "The model is not served here",
        408: "The body did not arrive in time",
        413: "The body is over the limit",
        415: "The body is not declared as application/json, or is compressed in a way that is not supported",
        429: "No capacity now, or the key's limit is reached; Retry-After is the time to wait",
        500: "A defect of this gateway",
        502: "The backend failed",
        503: "Not ready",
        504: "No answer before the deadline",
    }.items()
}


NO_KEY: dict[str, Any] = {"security": []}
"""``openapi_extra`` of a route without an API key: those that balancers and Prometheus call."""


def request_body(model: type[BaseModel], *, header: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return ``openapi_extra`` for a route that reads its own JSON body, and perhaps a header."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    extra: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    if header is not None:
        extra["parameters"] = [{"in": "header", "required": False, **header}]
    return extra


def routes(app: FastAPI, operators_only: Callable[[Request], None]) -> APIRouter:
    """Return the route of the document for operators, for when FastAPI does not serve it to everyone."""
    router = APIRouter()

    @router.head("/openapi.json", include_in_schema=False)
    @router.get("/openapi.json", include_in_schema=False)
    async def document(request: Request) -> Response:
        operators_only(request)
        return json_response(app.openapi())

    return router


def describe(app: FastAPI, settings: Settings) -> None:
    """Give the app its OpenAPI document, with this server's limits in it."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            _, definitions = models_json_schema([(model, "validation") for model in _BODIES], ref_template=_REF)
            document["components"]["schemas"].update(definitions["$defs"])
            _state_limits(document, settings)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _state_limits(document: dict[str, Any], settings: Settings) -> None:
    fields = document["components"]["schemas"][ChatCompletionRequest.__name__]["properties"]
    fields["model"]["enum"] = list(settings.api.models)
    fields["messages"]["maxItems"] = settings.api.max_messages
    [header] = document["paths"]["/v1/chat/completions"]["post"]["parameters"]
    for schema in (fields["best_of"]["anyOf"][0], fields["n"]["anyOf"][0], header["schema"]):
        schema["maximum"] = settings.race.best_of_max
    for name, neutral in NEUTRAL.items():
        fields[name] = {"title": fields[name]["title"], "enum": [*neutral, None]}
    fields["stop"]["anyOf"][1]["maxItems"] = MAX_STOPS
    if settings.api.keys_file is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
