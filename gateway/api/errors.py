"""Errors as HTTP responses in OpenAI's envelope, by one table: error class → (HTTP status, type, code)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from gateway import errors
from gateway.api.decompression import ENCODINGS
from gateway.api.json_response import json_response

TABLE: dict[type[errors.GatewayError], tuple[int, str, str | None]] = {
    errors.InvalidRequest: (400, "invalid_request_error", "invalid_value"),
    errors.UnsupportedField: (400, "invalid_request_error", "unsupported_parameter"),
    errors.AuthenticationFailed: (401, "authentication_error", "invalid_api_key"),
    errors.PermissionDenied: (403, "permission_error", "missing_scope"),
    errors.ModelNotFound: (404, "invalid_request_error", "model_not_found"),
    errors.RequestTooSlow: (408, "invalid_request_error", "request_too_slow"),
    errors.RequestTooLarge: (413, "invalid_request_error", "request_too_large"),
    errors.UnsupportedContentType: (415, "invalid_request_error", "unsupported_content_type"),
    errors.UnsupportedContentEncoding: (415, "invalid_request_error", "unsupported_content_encoding"),
    errors.Overloaded: (429, "rate_limit_error", "overloaded"),
    errors.RateLimited: (429, "rate_limit_error", "rate_limit_exceeded"),
    errors.NotReady: (503, "service_unavailable_error", "not_ready"),
    errors.DeadlineExceeded: (504, "timeout_error", "deadline_exceeded"),
    errors.BackendRejected: (400, "invalid_request_error", "rejected_by_backend"),
    errors.ContextLengthExceeded: (400, "invalid_request_error", "context_length_exceeded"),
    errors.BackendMisconfigured: (502, "upstream_error", "backend_misconfigured"),
    errors.BackendOverloaded: (429, "rate_limit_error", "backend_overloaded"),
    errors.BackendTimeout: (504, "timeout_error", "backend_timeout"),
    errors.BackendFailed: (502, "upstream_error", "backend_failed"),
    errors.BackendKeyRefused: (502, "upstream_error", "backend_key_refused"),
    errors.AdapterMissing: (502, "upstream_error", "adapter_missing"),
    errors.BackendProtocolError: (502, "upstream_error", "backend_protocol_error"),
    errors.BackendUnreachable: (502, "upstream_error", "backend_unreachable"),
    errors.RequestContained: (503, "upstream_error", "request_contained"),
    # None of these should reach a caller; if one does, it is a defect of the gateway.
    errors.RewardError: (500, "internal_error", "reward_error"),
    errors.RewardTimeout: (500, "internal_error", "reward_timeout"),
    errors.RewardRefused: (500, "internal_error", "reward_refused"),
    errors.RewardUnavailable: (500, "internal_error", "reward_unavailable"),
    errors.JournalError: (500, "internal_error", "journal_error"),
    errors.PolicyError: (500, "internal_error", "policy_error"),
    errors.SettingsError: (500, "internal_error", "settings_error"),
}

INTERNAL = (500, "internal_error", "internal_error")
_UNION_FIELDS = frozenset({"content", "function_call", "response_format", "stop", "tool_choice"})
_TAG_ERRORS = frozenset({"union_tag_invalid", "union_tag_not_found"})
_MAX_LISTED_ERRORS = 100
"""Listing more would block the event loop for seconds: a small body can hold a great many mistakes."""
_BY_STATUS = {
    400: ("invalid_request_error", "invalid_request"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
}


def envelope(message: str, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def describe(error: errors.GatewayError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return the status, body and headers of an error."""
    status, kind, code = TABLE.get(type(error), INTERNAL)
    param = error.param if isinstance(error, errors.CallerError | errors.BackendRejected) else None
    return status, envelope(error.message, kind, code, param), _headers(error, status)


def respond(error: errors.GatewayError) -> Response:
    status, body, headers = describe(error)
    return json_response(body, status=status, headers=headers)


def respond_status(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response for an error of HTTP itself: no such route, no such method."""
    kind, code = _BY_STATUS.get(status, ("invalid_request_error" if status < 500 else "internal_error", None))
    return json_response(envelope(message, kind, code), status=status, headers=headers)


def invalid_body(error: ValidationError) -> errors.InvalidRequest:
    """Return pydantic's error about the first bad field, in the caller's terms and without the caller's text."""
    if error.error_count() > _MAX_LISTED_ERRORS:
        return errors.InvalidRequest(f"the body has {error.error_count()} errors")
    problems = error.errors(include_url=False, include_input=False)
    first = _fields(problems[0]["loc"])
    # A union reports one error for each of its members; the one at the deepest place is about the member meant.
    about_first = (problem for problem in problems if _fields(problem["loc"])[: len(first)] == first)
    problem = max(about_first, key=lambda problem: len(_fields(problem["loc"])))
    kind, message, fields = problem["type"], problem["msg"], _fields(problem["loc"])
    if kind == "json_invalid":
        return errors.InvalidRequest("the body is not valid JSON")
    if kind in _TAG_ERRORS:
        # Pydantic's own message quotes the tag, which is the caller's text.
        fields = (*fields, problem["ctx"]["discriminator"].strip("'"))
        expected = problem["ctx"].get("expected_tags")
        message = f"Input should be one of {expected}" if expected else "Field required"
    if kind == "unknown_field":
        fields = (*fields, problem["ctx"]["field"])
    where = _path(fields)
    if kind == "unknown_field":
        return errors.InvalidRequest(f"unknown field: {where}", param=where)
    return errors.InvalidRequest(f"{where or 'the body'}: {message}", param=where or None)


def _headers(error: errors.GatewayError, status: int) -> dict[str, str]:
    if status == 429:
        # HTTP has whole seconds only; OpenAI's clients look for milliseconds first.
        wait_ms = math.ceil(getattr(error, "retry_after_s", 1.0) * 1e3)
        left = error.headers if isinstance(error, errors.RateLimited) else {}
        return {**left, "retry-after": str(math.ceil(wait_ms / 1e3)), "retry-after-ms": str(wait_ms)}
    if status == 408:
        return {"connection": "close"}  # the rest of the body may still arrive
    if isinstance(error, errors.UnsupportedContentEncoding):
        return {"accept-encoding": ", ".join(ENCODINGS)}
    if isinstance(error, errors.RequestContained):
        # OpenAI's clients repeat a 503 within a second; this header of theirs tells them not to.
        return {"retry-after": str(math.ceil(error.retry_after_s)), "x-should-retry": "false"}
    return {"www-authenticate": "Bearer"} if status == 401 else {}


def _fields(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return pydantic's location as a place in the caller's body: without the names of union members."""
    return tuple(part for index, part in enumerate(loc) if not (part == "[key]" or _is_member(loc, index)))


def _is_member(loc: tuple[int | str, ...], index: int) -> bool:
    in_message = index >= 2 and loc[index - 2] == "messages" and isinstance(loc[index - 1], int)
    return in_message or (index >= 1 and loc[index - 1] in _UNION_FIELDS)


def _path(fields: tuple[int | str, ...]) -> str:
    """Return a field's place as text, such as ``messages[0].content``."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:64]}" for part in fields)
    return path.removeprefix(".")
