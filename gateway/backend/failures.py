"""Turn what a server answers instead of a completion into the errors of ``gateway.errors``."""

from __future__ import annotations

import codecs
from typing import Any

import orjson
import structlog

from gateway.backend.flavours import Flavour, Refusal
from gateway.backend.http import StatusError, unreadable
from gateway.errors import (
    BackendError,
    BackendFailed,
    BackendKeyRefused,
    BackendMisconfigured,
    BackendOverloaded,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    ContextLengthExceeded,
)
from gateway.types import JsonObject

log = structlog.get_logger()

# Raised by a call through the hub's client, besides GatewayError: an HTTP status, and, for answers of another shape
# than it expects, anything that its parser raises.
CALL_ERRORS = (StatusError, ValueError, TypeError, AttributeError, LookupError, RecursionError)

_REJECTED = frozenset({400, 413, 415, 422})
_OVERLOADED = frozenset({429, 503})
_TIMED_OUT = frozenset({408, 504})
_MESSAGE_CHARS = 500


def translate(error: Exception, flavour: Flavour) -> BackendError:
    """Return the gateway's error for one of ``CALL_ERRORS``; its message holds no prompt or answer text."""
    if isinstance(error, StatusError):
        return from_status(error.status, json_object(error.content), flavour)
    return unreadable(type(error).__name__)


def from_status(status: int, body: JsonObject, flavour: Flavour) -> BackendError:
    """Return the error for an HTTP status, with the server's reason where that is safe to pass on.

    404 and 401 are the operator's mistakes (a wrong URL, a missing key), not the caller's: ``BackendFailed`` and
    ``BackendKeyRefused``. 503 is a server without capacity now, whether loading, draining or full.
    """
    if body:
        status = flavour.true_status(status, body)
    if status in _REJECTED:
        return _rejected(flavour.refusal(body))
    if flavour.starting(body):
        return BackendUnreachable("the backend is still starting", was_sent=False)
    if status in _OVERLOADED:
        return BackendOverloaded("the backend is overloaded")
    if status in _TIMED_OUT:
        return BackendTimeout("the backend did not answer in time")
    if status in (401, 403):
        log.error("backend_refuses_key", status=status)
        return BackendKeyRefused("the backend refused the gateway's API key")
    return BackendFailed(f"the backend answered with status {status}")


def _rejected(refusal: Refusal) -> BackendRejected:
    if refusal.operators_mistake:
        log.error("backend_misconfigured", reason=refusal.operators_mistake)
        return BackendMisconfigured(f"the backend is not set up for this: {refusal.operators_mistake}")
    unknown = f"the backend refused {refusal.param or 'the request'} as invalid"
    kind = ContextLengthExceeded if refusal.too_long else BackendRejected
    return kind((refusal.reason or unknown)[:_MESSAGE_CHARS], param=refusal.param)


def raise_if_error(body: Any, flavour: Flavour) -> None:
    """Raise the ``BackendError`` for an error that was reported under a status of 200."""
    if isinstance(body, dict) and body.get("error") is not None:
        raise from_status(200, body, flavour)


def json_object(content: bytes) -> JsonObject:
    """Return the JSON object in a body; an empty one for text, HTML or incomplete JSON."""
    try:
        body = orjson.loads(content.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
