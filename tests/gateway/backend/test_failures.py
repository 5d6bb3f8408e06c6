from __future__ import annotations

import inspect

import aiohttp
import orjson
import pytest

from gateway.backend.failures import CALL_ERRORS, from_status, translate
from gateway.backend.flavours import FLAVOURS
from gateway.backend.http import StatusError, _as_gateway_errors
from gateway.errors import (
    BackendError,
    BackendFailed,
    BackendKeyRefused,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
)

TGI = FLAVOURS["tgi"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (StatusError(503, b"busy"), BackendOverloaded),
        (orjson.JSONDecodeError("x", "", 0), BackendProtocolError),
        (AttributeError("x"), BackendProtocolError),
        (KeyError("choices"), BackendProtocolError),
        (RecursionError("x"), BackendProtocolError),
    ],
)
def test_every_error_of_a_call_has_its_kind(error: Exception, expected: type) -> None:
    assert isinstance(error, CALL_ERRORS)
    assert expected is type(translate(error, TGI))


@pytest.mark.parametrize(
    ("error", "expected", "was_sent", "broke"),
    [
        (aiohttp.ConnectionTimeoutError("x"), BackendUnreachable, False, False),
        (aiohttp.ServerTimeoutError("x"), BackendTimeout, None, None),
        (TimeoutError("x"), BackendTimeout, None, None),
        (aiohttp.InvalidURL("x"), BackendUnreachable, False, False),
        (aiohttp.ServerDisconnectedError("x"), BackendUnreachable, True, True),
        (aiohttp.ClientPayloadError("x"), BackendUnreachable, True, True),
        (ConnectionResetError("x"), BackendUnreachable, True, True),
        (ValueError("x"), BackendProtocolError, None, None),
    ],
)
def test_every_error_of_the_connection_has_its_kind(
    error: Exception, expected: type[BackendError], was_sent: bool | None, broke: bool | None
) -> None:
    with pytest.raises(expected) as raised, _as_gateway_errors():
        raise error
    assert (was_sent, broke) == (getattr(raised.value, "was_sent", None), getattr(raised.value, "broke", None))


def test_no_error_of_aiohttp_is_left_out() -> None:
    """Any error that aiohttp raises, now or in a later version, is a backend's error; its text is not passed on."""
    kinds = [kind for _, kind in inspect.getmembers(aiohttp, inspect.isclass) if issubclass(kind, aiohttp.ClientError)]
    assert len(kinds) > 20
    for kind in kinds:
        error = kind.__new__(kind, "a secret")
        with pytest.raises(BackendError) as raised, _as_gateway_errors():
            raise error
        assert "secret" not in raised.value.message


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


def test_llamacpp_is_unreachable_while_it_loads_its_weights() -> None:
    """Another replica takes the draw; any other 503 is an overload."""
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    assert BackendUnreachable is type(from_status(503, loading, FLAVOURS["llamacpp"]))
    assert BackendOverloaded is type(from_status(503, loading, TGI))


def test_a_reason_is_not_longer_than_a_line() -> None:
    body = {"error": "Input validation error: " + "x" * 10_000}
    assert 500 == len(from_status(422, body, TGI).message)
