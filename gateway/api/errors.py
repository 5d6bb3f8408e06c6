"""Every error as OpenAI's envelope: one table, error class → (HTTP status, type, code)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.responses import Response

from gateway import errors

TABLE: dict[type[errors.GatewayError], tuple[int, str, str | None]] = {
    errors.InvalidRequest: (400, "invalid_request_error", "invalid_value"),
    errors.UnsupportedField: (400, "invalid_request_error", "unsupported_parameter"),
    errors.AuthenticationFailed: (401, "authentication_error", "invalid_api_key"),
    errors.ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    errors.RequestTooLarge: (413, "invalid_request_error", "request_too_large"),
    errors.Overloaded: (429, "rate_limit_error", "overloaded"),
    errors.NotReady: (503, "service_unavailable_error", "not_ready"),
    errors.DeadlineExceeded: (504, "timeout_error", "deadline_exceeded"),
    errors.BackendRejected: (400, "invalid_request_error", "rejected_by_backend"),
    errors.BackendOverloaded: (429, "rate_limit_error", "backend_overloaded"),
    errors.BackendTimeout: (504, "timeout_error", "backend_timeout"),
    errors.BackendFailed: (502, "upstream_error", "backend_failed"),
    errors.BackendProtocolError: (502, "upstream_error", "backend_protocol_error"),
    errors.BackendUnreachable: (502, "upstream_error", "backend_unreachable"),
    # None of these should reach a caller; if one does, it is ours.
    errors.RewardError: (500, "internal_error", "reward_error"),
    errors.RewardTimeout: (500, "internal_error", "reward_timeout"),
    errors.JournalError: (500, "internal_error", "journal_error"),
    errors.PolicyError: (500, "internal_error", "policy_error"),
    errors.SettingsError: (500, "internal_error", "settings_error"),
}

INTERNAL = (500, "internal_error", "internal_error")
_BY_STATUS = {
    400: ("invalid_request_error", "invalid_request"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
}


def envelope(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: errors.GatewayError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error."""
    status, kind, code = TABLE.get(type(error), INTERNAL)
    param = error.param if isinstance(error, errors.CallerError) else None
    return status, envelope(error.message, kind, code, param), _headers(error, status)


def respond(error: errors.GatewayError) -> Response:
    """The whole HTTP answer of an error."""
    status, body, headers = describe(error)
    return json_response(body, status=status, headers=headers)


def respond_status(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer of an error that HTTP itself knows: no such route, no such method."""
    kind, code = _BY_STATUS.get(status, ("invalid_request_error" if status < 500 else "internal_error", None))
    return json_response(envelope(message, kind, code), status=status, headers=headers)


def invalid_body(error: ValidationError) -> errors.InvalidRequest:
    """Pydantic's first complaint, in the caller's terms and without the caller's text."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = _path(first["loc"])
    if first["type"] == "json_invalid":
        return errors.InvalidRequest("the body is not valid JSON")
    if first["type"] == "extra_forbidden":
        return errors.InvalidRequest(f"unknown field: {where}", param=where)
    return errors.InvalidRequest(f"{where or 'the body'}: {first['msg']}", param=where or None)


def json_response(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")


def _headers(error: errors.GatewayError, status: int) -> dict[str, str]:
    if status == 429:
        return {"retry-after": str(math.ceil(getattr(error, "retry_after_s", 1.0)))}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


def _path(loc: tuple[int | str, ...]) -> str:
    """``messages[0].content`` for a field's place; names of pydantic's own union members are left out."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _is_field(part):
            path += f".{part[:64]}" if path else part[:64]
    return path


def _is_field(part: str) -> bool:
    """Whether a part of a location is a field of the caller's, not a type or a tag of a union."""
    return not (part in _UNION_TAGS or "[" in part or part[:1].isupper())


_UNION_TAGS = {
    "str", "system", "developer", "user", "assistant", "tool", "text", "json_object", "json_schema", "none",
}  # fmt: skip
