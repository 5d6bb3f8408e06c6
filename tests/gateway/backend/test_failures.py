from __future__ import annotations

import httpx2
import orjson
import pytest
from huggingface_hub.errors import InferenceTimeoutError

from gateway.backend.failures import CALL_ERRORS, from_status, translate
from gateway.backend.flavours import FLAVOURS
from gateway.errors import (
    BackendError,
    BackendFailed,
    BackendKeyRefused,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    InvalidRequest,
)

TGI = FLAVOURS["tgi"]
REQUEST = httpx2.Request("POST", "http://backend/v1/chat/completions")


def timed_out(cause: httpx2.TimeoutException) -> InferenceTimeoutError:
    error = InferenceTimeoutError("timed out")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx2.ConnectError("x"), BackendUnreachable),
        (httpx2.ReadError("x"), BackendUnreachable),
        (httpx2.WriteError("x"), BackendUnreachable),
        (httpx2.ConnectTimeout("x"), BackendUnreachable),
        (timed_out(httpx2.ConnectTimeout("x")), BackendUnreachable),
        (timed_out(httpx2.ReadTimeout("x")), BackendTimeout),
        (httpx2.ReadTimeout("x"), BackendTimeout),
        (httpx2.PoolTimeout("x"), BackendTimeout),
        (httpx2.RemoteProtocolError("x"), BackendProtocolError),
        (httpx2.DecodingError("x"), BackendProtocolError),
        (orjson.JSONDecodeError("x", "", 0), BackendProtocolError),
        (AttributeError("x"), BackendProtocolError),
        (orjson.JSONEncodeError("x"), InvalidRequest),
    ],
)
def test_every_error_of_a_call_has_its_kind(error: Exception, expected: type) -> None:
    assert isinstance(error, CALL_ERRORS)
    assert expected is type(translate(error, TGI))


def test_no_error_of_the_transport_is_left_out() -> None:
    """Whatever httpx2 can raise, or comes to raise, is a backend's error."""
    raised = [getattr(httpx2, name) for name in httpx2.__all__]
    kinds = [kind for kind in raised if isinstance(kind, type) and issubclass(kind, httpx2.TransportError)]
    assert len(kinds) > 10
    for kind in kinds:
        error = kind("a secret")
        assert isinstance(error, CALL_ERRORS)
        translated = translate(error, TGI)
        assert isinstance(translated, BackendError)
        assert "secret" not in translated.message


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((400, 413, 415, 422), BackendRejected),
        ((429, 503), BackendOverloaded),
        ((408, 504), BackendTimeout),
        ((401, 403), BackendKeyRefused),
        ((404, 405, 424, 500, 501, 502, 599), BackendFailed),
    ],
)
def test_every_status_has_its_kind(statuses: tuple[int, ...], expected: type) -> None:
    assert {expected} == {type(from_status(status, {}, TGI)) for status in statuses}


def test_llamacpp_that_loads_its_weights_is_not_there_yet() -> None:
    """Another replica then takes the draw; any other 503 is an answer."""
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    assert BackendUnreachable is type(from_status(503, loading, FLAVOURS["llamacpp"]))
    assert BackendOverloaded is type(from_status(503, loading, TGI))


def test_a_reason_is_not_longer_than_a_line() -> None:
    body = {"error": "Input validation error: " + "x" * 10_000}
    assert 500 == len(from_status(422, body, TGI).message)
