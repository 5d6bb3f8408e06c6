from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from gateway.backend.flavours import Catalogue
from gateway.backend.hub import HubClient
from gateway.backend.replicas import _RESTART_S, Replicas
from gateway.errors import BackendFailed, BackendTimeout, BackendUnreachable

UNHEALTHY_S = 5.0


class Clock:
    """Time that a test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def replicas_of(clock: Clock, *urls: str) -> Replicas:
    """Replicas that are chosen among, never called."""
    connect = cast(Callable[[str], HubClient], lambda url: None)
    return Replicas(urls or ("http://a:1", "http://b:2", "http://c:3"), connect, UNHEALTHY_S, clock)


def break_connection(replicas: Replicas, index: int) -> None:
    with pytest.raises(BackendUnreachable), replicas.all[index].drawing():
        raise BackendUnreachable("broke")


def test_idle_replicas_take_turns(clock: Clock) -> None:
    replicas = replicas_of(clock)
    assert [0, 1, 2, 0] == [replicas.choose() for _ in range(4)]


def test_the_least_loaded_serves(clock: Clock) -> None:
    replicas = replicas_of(clock)
    with replicas.all[0].drawing(), replicas.all[1].drawing():
        assert [2, 2] == [replicas.choose(), replicas.choose()]
    assert [0, 0, 0] == [replica.in_flight for replica in replicas.all]


def test_one_that_broke_a_connection_is_passed_over_for_a_while(clock: Clock) -> None:
    replicas = replicas_of(clock, "http://a:1", "http://b:2")
    break_connection(replicas, 0)
    assert [1, 1] == [replicas.choose(), replicas.choose()]
    clock.now_s += UNHEALTHY_S
    assert 0 == replicas.choose()


def test_a_draw_that_succeeds_makes_it_healthy(clock: Clock) -> None:
    replicas = replicas_of(clock, "http://a:1", "http://b:2")
    break_connection(replicas, 0)
    with replicas.all[0].drawing():
        pass
    assert 0 == replicas.choose()


def test_an_error_of_its_own_leaves_it_healthy(clock: Clock) -> None:
    replicas = replicas_of(clock, "http://a:1", "http://b:2")
    with pytest.raises(BackendFailed), replicas.all[0].drawing():
        raise BackendFailed("500")
    assert 0 == replicas.choose()


def test_with_all_broken_the_one_broken_longest_ago_serves(clock: Clock) -> None:
    replicas = replicas_of(clock, "http://a:1", "http://b:2")
    break_connection(replicas, 1)
    clock.now_s += 1
    break_connection(replicas, 0)
    assert 1 == replicas.choose()


def test_a_spare_is_another_healthy_one(clock: Clock) -> None:
    replicas = replicas_of(clock)
    break_connection(replicas, 0)
    break_connection(replicas, 1)
    assert replicas.all[2] is replicas.spare(replicas.all[0])
    assert None is replicas.spare(replicas.all[2])


def test_a_name_tells_no_password(clock: Clock) -> None:
    (replica,) = replicas_of(clock, "http://user:secret@host:8080/v1").all
    assert ("host:8080", "http://user:secret@host:8080") == (replica.name, replica.root_url)


def test_what_it_serves_is_forgotten_after_a_silence_in_which_it_may_have_restarted(clock: Clock) -> None:
    """While draws run, or follow one another closely, a restart would have broken one."""
    (replica,) = replicas_of(clock, "http://a:1").all
    known = Catalogue("base", {"rft-1": 0})
    with replica.drawing():
        replica.catalogue = known
        clock.now_s += 60
        with replica.drawing():
            assert known is replica.catalogue
    clock.now_s += _RESTART_S / 2
    with replica.drawing():
        assert known is replica.catalogue
    clock.now_s += _RESTART_S
    with replica.drawing():
        assert None is replica.catalogue


def test_a_draw_that_failed_says_nothing_of_a_restart(clock: Clock) -> None:
    (replica,) = replicas_of(clock, "http://a:1").all
    with replica.drawing():
        replica.catalogue = Catalogue("base")
    clock.now_s += _RESTART_S
    with pytest.raises(BackendTimeout), replica.drawing():
        raise BackendTimeout("hangs")
    replica.catalogue = Catalogue("base")
    with replica.drawing():
        assert None is replica.catalogue
