"""Ejections of one replica: their length and their end."""

from __future__ import annotations

import pytest

from gateway.backend.health import _JITTER, _MAX_EJECTION_S, Fault, Health, fault_of
from gateway.errors import (
    AuthenticationFailed,
    BackendError,
    BackendFailed,
    BackendOverloaded,
    BackendProtocolError,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    InvalidRequest,
)
from tests.gateway.backend.clock import Clock

BASE_S = 5.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(BASE_S, clock)


def length_s(health: Health, fault: Fault = Fault.ERROR) -> float:
    """Return the length of an ejection that begins now."""
    health.eject(fault, "why")
    assert health.ejection is not None
    return health.ejection.until_s - health.ejection.at_s


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (BackendFailed("500"), Fault.ERROR),
        (BackendProtocolError("HTML"), Fault.ERROR),
        (BackendTimeout("slow"), Fault.TIMEOUT),
        (BackendOverloaded("429"), Fault.OVERLOADED),
        (BackendUnreachable("gone"), Fault.UNREACHABLE),
        (BackendError("else"), Fault.ERROR),
        (BackendRejected("422"), None),
        (InvalidRequest("text"), None),
        (AuthenticationFailed("key"), None),
    ],
)
def test_a_callers_mistake_is_no_failure_of_the_server(error: BackendError, fault: Fault | None) -> None:
    assert fault is fault_of(error)


def test_each_ejection_in_a_row_is_longer_up_to_a_ceiling(health: Health) -> None:
    lengths = [length_s(health) for _ in range(10)]
    expected = [min(BASE_S * count, _MAX_EJECTION_S) for count in range(1, 11)]
    for length, middle in zip(lengths, expected, strict=True):
        assert middle * (1 - _JITTER) <= length <= middle * (1 + _JITTER)


def test_ejections_have_a_random_length(clock: Clock) -> None:
    assert 1 < len({length_s(Health(BASE_S, clock)) for _ in range(5)})


def test_ejections_for_overload_do_not_grow(health: Health) -> None:
    assert all(length_s(health, Fault.OVERLOADED) <= BASE_S * (1 + _JITTER) for _ in range(5))


def test_a_probe_is_due_when_the_time_is_over(health: Health, clock: Clock) -> None:
    length = length_s(health)
    clock.now_s += length - 0.01
    assert (True, False) == (health.ejected, health.probe_due)
    clock.now_s += 0.01
    assert (True, True) == (health.ejected, health.probe_due)


def test_after_its_return_one_failure_ejects_again_until_a_caller_was_answered(health: Health, clock: Clock) -> None:
    length_s(health)
    health.readmit()
    health.failed(Fault.ERROR)
    assert health.suspicious(Fault.ERROR, 0.0)
    health.succeeded(clock())
    health.failed(Fault.ERROR)
    assert not health.suspicious(Fault.ERROR, 0.0)


def test_an_answer_after_the_return_makes_the_next_ejection_short_again(health: Health, clock: Clock) -> None:
    for _ in range(4):
        length_s(health)
    health.readmit()
    health.succeeded(clock())
    assert length_s(health) <= BASE_S * (1 + _JITTER)


def test_a_length_of_zero_never_ejects(clock: Clock) -> None:
    health = Health(0.0, clock)
    for _ in range(20):
        health.failed(Fault.UNREACHABLE)
    assert not health.suspicious(Fault.UNREACHABLE, 0.0)


def test_a_server_is_trusted_until_it_breaks_a_connection_and_after_it_answered(health: Health, clock: Clock) -> None:
    trusted = [health.trusted]
    for fault in (Fault.ERROR, Fault.UNREACHABLE):
        clock.now_s += 1
        health.failed(fault)
        trusted.append(health.trusted)
    clock.now_s += 1
    health.succeeded(clock())
    assert [True, True, False, True] == [*trusted, health.trusted]
