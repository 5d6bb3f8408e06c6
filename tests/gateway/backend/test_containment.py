"""A request that broke two servers goes to no further one for a minute; other requests are served."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.backend.containment import CONTAINED_S, TRIAL_AFTER_S, Containment
from gateway.errors import RequestContained
from gateway.types import Prompt
from tests.gateway.backend.clock import Clock
from tests.gateway.backend.conftest import prompt


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def containment(clock: Clock) -> Containment:
    return Containment(clock)


def contain(containment: Containment, request: str = "r") -> None:
    containment.broke(request, "a:1")
    with pytest.raises(RequestContained):
        containment.broke(request, "b:2")


def test_one_break_contains_nothing(containment: Containment) -> None:
    containment.broke("r", "a:1")
    assert (frozenset(), 0) == (containment.admit("r"), containment.contained)


def test_two_breaks_contain_the_request_and_no_other(containment: Containment) -> None:
    contain(containment)
    with pytest.raises(RequestContained):
        containment.admit("r")
    assert (frozenset(), 1) == (containment.admit("another"), containment.contained)


def test_two_breaks_of_one_server_contain_the_request(containment: Containment) -> None:
    containment.broke("r", "a:1")
    with pytest.raises(RequestContained):
        containment.broke("r", "a:1")


@pytest.mark.parametrize(("after_s", "contained"), [(CONTAINED_S - 0.1, True), (CONTAINED_S, False)])
def test_breaks_count_together_within_a_minute(
    containment: Containment, clock: Clock, after_s: float, contained: bool
) -> None:
    containment.broke("r", "a:1")
    clock.now_s += after_s
    if contained:
        with pytest.raises(RequestContained):
            containment.broke("r", "b:2")
    else:
        containment.broke("r", "b:2")


def test_a_contained_request_is_free_after_a_minute(containment: Containment, clock: Clock) -> None:
    contain(containment)
    clock.now_s += CONTAINED_S
    assert frozenset() == containment.admit("r")
    assert containment.idle


def test_an_answer_clears_the_request(containment: Containment) -> None:
    containment.broke("r", "a:1")
    containment.answered("r")
    containment.broke("r", "b:2")
    assert 0 == containment.contained


@pytest.mark.parametrize(("after_s", "tried"), [(TRIAL_AFTER_S - 0.1, False), (TRIAL_AFTER_S, True)])
def test_after_ten_seconds_one_draw_may_go_to_a_server_that_it_broke(
    containment: Containment, clock: Clock, after_s: float, tried: bool
) -> None:
    """A harmless request that met two restarts is free once it is answered; a harmful one reaches no new server."""
    contain(containment)
    clock.now_s += after_s
    if tried:
        assert frozenset({"a:1", "b:2"}) == containment.admit("r")
    with pytest.raises(RequestContained):
        containment.admit("r")


def test_the_retry_time_is_the_rest_of_the_minute(containment: Containment, clock: Clock) -> None:
    contain(containment)
    clock.now_s += 5
    with pytest.raises(RequestContained) as refused:
        containment.admit("r")
    assert CONTAINED_S - 5 == refused.value.retry_after_s


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seed": 7}, True),
        ({"temperature": 0.3}, True),
        ({"max_tokens": 9}, False),
        ({"tools": ({"type": "function"},)}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"stop": ("x",)}, False),
    ],
)
def test_the_fingerprint_depends_on_the_work_that_the_request_makes(
    containment: Containment, changes: dict[str, Any], same: bool
) -> None:
    asked = prompt("hello", max_tokens=5)
    changed = replace(asked, sampling=replace(asked.sampling, **changes))
    assert same == (containment.fingerprint(asked) == containment.fingerprint(changed))


def test_the_fingerprint_depends_on_the_salt(containment: Containment) -> None:
    asked = prompt("hello")
    assert containment.fingerprint(asked) != Containment().fingerprint(asked)
    assert containment.fingerprint(asked) != containment.fingerprint(prompt("hello!"))


def test_text_that_cannot_be_sent_has_no_fingerprint(containment: Containment) -> None:
    asked = Prompt([{"role": "user", "content": "\ud800"}], prompt().sampling)
    containment.broke(containment.fingerprint(asked), "a:1")
    assert containment.idle


def test_the_number_of_suspects_is_bounded(containment: Containment, clock: Clock) -> None:
    for number in range(100):
        containment.broke(str(number), "a:1")
    clock.now_s += CONTAINED_S
    containment.broke("new", "a:1")
    assert 1 == len(containment._suspects)


@pytest.mark.parametrize(("after_s", "suspected"), [(CONTAINED_S - 0.1, True), (CONTAINED_S, False)])
def test_a_request_is_a_suspect_for_a_minute_after_its_first_break(
    containment: Containment, clock: Clock, after_s: float, suspected: bool
) -> None:
    containment.broke("r", "a:1")
    clock.now_s += after_s
    assert (suspected, False) == (containment.suspects("r"), containment.suspects("another"))
