"""Every way a backend can fail, in the words of ``gateway.errors``."""

from __future__ import annotations

import codecs
from typing import Any

import httpx2
import orjson
import structlog
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError

from gateway.backend.flavours import Flavour, Refusal
from gateway.errors import (
    BackendFailed,
    BackendKeyRefused,
    BackendMisconfigured,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
)
from gateway.types import JsonObject

log = structlog.get_logger()

# What a call through the hub's client can raise: httpx2's and its own (both are HTTPError), what a policy's URL can be,
# and, for answers of another shape than it expects, whatever its parsing stumbles over.
CALL_ERRORS = (
    httpx2.HTTPError,
    httpx2.StreamError,
    httpx2.InvalidURL,
    ValueError,
    TypeError,
    AttributeError,
    RecursionError,
)

_REJECTED = frozenset({400, 413, 415, 422})
_OVERLOADED = frozenset({429, 503})
_TIMED_OUT = frozenset({408, 504})
_MESSAGE_CHARS = 500


def translate(error: Exception, flavour: Flavour) -> GatewayError:
    """The gateway's error for one that came out of a call; its message holds no prompt or answer text."""
    match error:
        case HfHubHTTPError():
            return from_status(error.response.status_code, error_body(error.response.content), flavour)
        case InferenceTimeoutError(__cause__=httpx2.ConnectTimeout()) | httpx2.ConnectTimeout():
            return BackendUnreachable("the backend could not be reached in time", was_sent=False)
        case InferenceTimeoutError() | httpx2.TimeoutException():
            return BackendTimeout("the backend did not answer in time")
        case httpx2.InvalidURL():
            return BackendUnreachable("the backend's URL is none", was_sent=False)
        case httpx2.ConnectError():
            return BackendUnreachable("the backend could not be reached", was_sent=False)
        case httpx2.NetworkError():
            return BackendUnreachable("the connection to the backend broke", broke=True)
        case orjson.JSONEncodeError():
            return InvalidRequest("messages: text that is not valid Unicode", param="messages")
        case _:
            log.warning("backend_answer_unreadable", error=type(error).__name__)
            return BackendProtocolError("the backend's answer could not be read")


def from_status(status: int, body: JsonObject, flavour: Flavour) -> GatewayError:
    """The error for an HTTP status, with the server's reason where that is safe to pass on.

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


def refused_body(error: Exception) -> JsonObject:
    """The JSON of the HTTP error that ended a call; nothing where it was another error."""
    return error_body(error.response.content) if isinstance(error, HfHubHTTPError) else {}


def raise_if_error(body: Any, flavour: Flavour) -> None:
    """Raise for an error that was reported under a status of 200.

    Raises:
        GatewayError: The body is an error's.
    """
    if isinstance(body, dict) and body.get("error") is not None:
        raise from_status(200, body, flavour)


def error_body(content: bytes) -> JsonObject:
    """An error's JSON; nothing where it is text, HTML or half of something."""
    try:
        body = orjson.loads(content.removeprefix(codecs.BOM_UTF8))
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}
