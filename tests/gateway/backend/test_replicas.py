from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from gateway.backend.flavours import Catalogue
from gateway.backend.health import FAILURES_IN_A_ROW, Fault
from gateway.backend.http import Http
from gateway.backend.hub import HubClient
from gateway.backend.replicas import _ASK_ADAPTER_AGAIN_S, _RESTART_S, Replica, Replicas
from gateway.backend.server import Server
from gateway.errors import (
    AdapterMissing,
    BackendFailed,
    BackendOverloaded,
    BackendRejected,
    BackendTimeout,
    BackendUnreachable,
    GatewayError,
)
from gateway.settings import BackendSettings
from tests.gateway.backend.clock import Clock

UNHEALTHY_S = 5.0
LONG_S = 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def replicas_of(clock: Clock, *urls: str, places: Callable[[Replica], int] = lambda _: 1) -> Replicas:
    """Return replicas that are chosen among, never called."""
    http = Http(BackendSettings())

    def connect(url: str) -> tuple[Server, HubClient]:
        return Server(http, url, timeout_s=1.0), HubClient(http, url, timeout_s=1.0)

    return Replicas(urls or ("http://a:1", "http://b:2", "http://c:3"), connect, UNHEALTHY_S, clock, places)


def fail(replicas: Replicas, index: int, error: GatewayError, times: int = 1) -> None:
    """End the draws of this many races in an error."""
    for race in range(times):
        with pytest.raises(type(error)), replicas.drawing(replicas.all[index], f"race {race}"):
            raise error


def answer(replicas: Replicas, index: int) -> None:
    with replicas.drawing(replicas.all[index]):
        pass


def chosen(replicas: Replicas, count: int) -> list[int]:
    return [replicas.all.index(cast(Replica, replicas.choose())) for _ in range(count)]


def test_idle_replicas_take_turns(clock: Clock) -> None:
    assert [0, 1, 2, 0] == chosen(replicas_of(clock), 4)


def test_the_least_loaded_serves(clock: Clock) -> None:
    replicas = replicas_of(clock)
    with replicas.drawing(replicas.all[0]), replicas.drawing(replicas.all[1]):
        assert [2, 2] == chosen(replicas, 2)
    assert [0, 0, 0] == [replica.in_flight for replica in replicas.all]


def test_a_replica_that_broke_a_connection_is_ejected_at_once_until_it_is_readmitted(clock: Clock) -> None:
    replicas = replicas_of(clock, "http://a:1", "http://b:2")
    fail(replicas, 0, BackendUnreachable("broke"))
    assert [1, 1] == chosen(replicas, 2)
    clock.now_s += LONG_S
    assert replicas.all[0].health.probe_due
    assert [1] == chosen(replicas, 1)
    replicas.readmit(replicas.all[0])
    assert [0] == chosen(replicas, 1)


@pytest.mark.parametrize(
    ("error", "tolerated"),
    [
        (BackendFailed("500"), FAILURES_IN_A_ROW - 1),
        (BackendTimeout("hangs"), FAILURES_IN_A_ROW - 1),
        (BackendOverloaded("429"), 2 * FAILURES_IN_A_ROW - 1),
        (BackendRejected("422"), 100),
        (AdapterMissing("rft-1"), 100),
    ],
)
def test_failures_in_a_row_that_are_the_servers_fault_eject_it(
    clock: Clock, error: GatewayError, tolerated: float
) -> None:
    """Overload counts half; a caller's mistake and a missing adapter count nothing."""
    replicas = replicas_of(clock)
    fail(replicas, 0, error, int(tolerated))
    assert not replicas.all[0].health.ejected
    fail(replicas, 0, error)
    assert (tolerated < 100) == replicas.all[0].health.ejected


def test_an_answer_ends_the_row(clock: Clock) -> None:
    replicas = replicas_of(clock)
    for _ in range(3):
        fail(replicas, 0, BackendFailed("500"), int(FAILURES_IN_A_ROW) - 1)
        answer(replicas, 0)
    assert not replicas.all[0].health.ejected


def test_the_draws_of_one_race_count_once_in_the_row(clock: Clock) -> None:
    """One request must not eject a server by itself."""
    replicas = replicas_of(clock)
    for _ in range(8):
        with pytest.raises(BackendFailed), replicas.drawing(replicas.all[0], "one race"):
            raise BackendFailed("500")
    assert not replicas.all[0].health.ejected


def test_failures_count_as_load(clock: Clock) -> None:
    replicas = replicas_of(clock)
    fail(replicas, 0, BackendFailed("500"))
    assert [1, 2, 1, 2] == chosen(replicas, 4)
    clock.now_s += LONG_S
    assert [0] == chosen(replicas, 1)


def test_a_share_of_failures_far_above_the_others_ejects(clock: Clock) -> None:
    """Every second draw fails: never three in a row."""
    replicas = replicas_of(clock)
    for _ in range(10):
        answer(replicas, 0)
        answer(replicas, 1)
        fail(replicas, 0, BackendFailed("500"))
    assert [True, False] == [replica.health.ejected for replica in replicas.all[:2]]


def test_a_share_of_failures_that_all_replicas_have_ejects_none(clock: Clock) -> None:
    replicas = replicas_of(clock)
    for _ in range(10):
        for index in range(3):
            answer(replicas, index)
            fail(replicas, index, BackendFailed("500"))
    assert not any(replica.health.ejected for replica in replicas.all)


@pytest.mark.parametrize(("urls", "most"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_at_most_half_of_the_answering_replicas_are_ejected(clock: Clock, urls: int, most: int) -> None:
    replicas = replicas_of(clock, *(f"http://a:{port}" for port in range(urls)))
    for index in range(urls):
        fail(replicas, index, BackendFailed("500"), 5)
    assert most == sum(replica.health.ejected for replica in replicas.all)


def test_with_all_ejected_the_least_sick_replica_serves(clock: Clock) -> None:
    """One that answers with errors is better than one that cannot be reached."""
    replicas = replicas_of(clock)
    fail(replicas, 1, BackendFailed("500"), 3)
    fail(replicas, 0, BackendUnreachable("broke"))
    fail(replicas, 2, BackendUnreachable("broke"))
    assert [1, 1] == chosen(replicas, 2)


def test_an_only_replica_always_serves(clock: Clock) -> None:
    replicas = replicas_of(clock, "http://a:1")
    fail(replicas, 0, BackendUnreachable("broke"))
    assert [0] == chosen(replicas, 1)


def test_an_answer_to_a_draw_begun_after_the_ejection_ends_it(clock: Clock) -> None:
    """A draw that began before proves nothing: the server may have failed since."""
    replicas = replicas_of(clock, "http://a:1")
    with replicas.drawing(replicas.all[0]):
        clock.now_s += 1
        replicas.eject(replicas.all[0], Fault.ERROR, "500")
    assert replicas.all[0].health.ejected
    answer(replicas, 0)
    assert not replicas.all[0].health.ejected


def test_a_replica_without_an_adapter_is_passed_over_for_that_adapter_alone(clock: Clock) -> None:
    replicas = replicas_of(clock, "http://a:1", "http://b:2")
    replicas.all[0].set_missing("rft-1", missing=True)
    assert {replicas.all[1]} == {replicas.choose(adapter="rft-1") for _ in range(3)}
    assert set(replicas.all) == {replicas.choose(adapter="rft-2") for _ in range(3)}
    replicas.all[1].set_missing("rft-1", missing=True)
    assert None is replicas.choose(adapter="rft-1")
    clock.now_s += _ASK_ADAPTER_AGAIN_S
    assert None is not replicas.choose(adapter="rft-1")


def test_without_panic_only_a_healthy_replica_is_chosen(clock: Clock) -> None:
    replicas = replicas_of(clock)
    fail(replicas, 1, BackendUnreachable("broke"))
    assert replicas.all[2] is replicas.choose(without=[replicas.all[0]], panic=False)
    assert None is replicas.choose(without=[replicas.all[0], replicas.all[2]], panic=False)


def test_a_choice_can_be_restricted_to_names(clock: Clock) -> None:
    replicas = replicas_of(clock)
    assert {"b:2"} == {cast(Replica, replicas.choose(only=frozenset({"b:2"}))).name for _ in range(3)}


def test_a_name_holds_no_password(clock: Clock) -> None:
    (replica,) = replicas_of(clock, "http://user:secret@host:8080/v1").all
    assert ("host:8080", "http://user:secret@host:8080") == (replica.name, replica.server.root_url)


def test_the_catalogue_is_forgotten_after_a_silence_long_enough_for_a_restart(clock: Clock) -> None:
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


def test_a_failed_draw_does_not_keep_the_catalogue(clock: Clock) -> None:
    (replica,) = replicas_of(clock, "http://a:1").all
    with replica.drawing():
        replica.catalogue = Catalogue("base")
    clock.now_s += _RESTART_S
    with pytest.raises(BackendTimeout), replica.drawing():
        raise BackendTimeout("hangs")
    replica.catalogue = Catalogue("base")
    with replica.drawing():
        assert None is replica.catalogue


@pytest.mark.parametrize(("loads", "expected"), [((3, 8, 8), 0), ((4, 8, 8), 1), ((5, 8, 9), 1)])
def test_load_is_relative_to_capacity(clock: Clock, loads: tuple[int, int, int], expected: int) -> None:
    replicas = replicas_of(clock, places=lambda replica: 64 if replica.name == "a:1" else 128)
    chosen(replicas, 1)  # of equals the longest unchosen is next, which is the second
    for replica, load in zip(replicas.all, loads, strict=True):
        replica.in_flight = load
    assert [expected] == chosen(replicas, 1)
