"""The policy document: versioned, unchanged by a round trip, and never out of range."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.errors import PolicyError
from gateway.policy import Canary, Policy
from gateway.settings import PolicySettings

urls = st.lists(st.sampled_from(["http://a:8080", "https://b/tgi"]), max_size=2).map(tuple)
canaries = st.builds(
    Canary,
    adapter=st.none() | st.text(max_size=20),
    n=st.just(1),
    urls=urls,
    default_temperature=st.none() | st.floats(0, 2),
    share=st.floats(0.001, 0.999),
    trial=st.text(max_size=20),
    holdback=st.booleans(),
)
policies = st.integers(1, 16).flatmap(
    lambda n: st.builds(
        Policy,
        version=st.integers(0, 10**6),
        adapter=st.none() | st.text(max_size=20),
        n=st.just(n),
        n_max=st.integers(n, 16),
        default_temperature=st.none() | st.floats(0, 2),
        exploration=st.floats(0, 1),
        urls=urls,
        canary=st.none() | canaries,
        undoes=st.none() | st.text(max_size=20),
        reason=st.text(max_size=20),
    )
)


@given(policy=policies)
def test_a_policy_survives_a_round_trip(policy: Policy) -> None:
    """A document that is read equals the published one."""
    assert policy == Policy.parse(policy.model_dump_json(), n_limit=16)


@pytest.mark.parametrize(
    "field",
    [
        {"version": -1},
        {"version": 2**63},
        {"n": 0},
        {"n": 9},
        {"n_max": 0},
        {"default_temperature": 2.1},
        {"default_temperature": float("nan")},
        {"exploration": 1.1},
        {"exploration": float("inf")},
        {"urls": ["ftp://a"]},
        {"urls": ["http://"]},
        {"canary": {"n": 9, "share": 0.5}},
        {"canary": {"n": 1, "share": 0}},
        {"canary": {"n": 1, "share": 1}},
        {"canary": {"n": 1}},
        {"canary": {"n": 1, "share": 0.5, "urls": ["file:///etc/passwd"]}},
    ],
)
def test_a_policy_out_of_range_cannot_be_made(field: dict[str, Any]) -> None:
    """Every number has bounds; n is at most what exploration draws."""
    with pytest.raises(ValidationError):
        Policy.model_validate({"version": 1, "n": 4, "n_max": 8} | field)


def test_a_successor_has_the_next_version_and_its_reason() -> None:
    """Everything else stays, except the time."""
    first = Policy(version=3, n=8, n_max=8, adapter="rft-1", exploration=0.05, reason="before")
    second = first.successor(n=4, reason="gate passed")
    assert (4, 4, 8, "rft-1", 0.05, "gate passed") == (
        second.version,
        second.n,
        second.n_max,
        second.adapter,
        second.exploration,
        second.reason,
    )
    assert second.created >= first.created


def test_a_policy_keeps_the_last_policy_of_the_base_model() -> None:
    base = Policy(version=0, n=6, n_max=8, default_temperature=0.7)
    first = base.successor(adapter="rft-1", n=3, reason="night")
    second = Policy.parse(first.successor(adapter="rft-2", n=1, reason="night").model_dump_json(), n_limit=8)
    assert [(None, 6, 0.7)] * 2 == [
        (arm.adapter, arm.n, arm.default_temperature) for arm in (first.base_arm(1), second.base_arm(1))
    ]
    again = second.successor(adapter=None, n=5, reason="by hand").successor(adapter="rft-3", reason="night")
    assert 5 == again.base_arm(1).n
    assert 2 == second.model_copy(update={"n_max": 2}).base_arm(1).n


def test_a_successor_with_a_mistake_is_a_policy_error() -> None:
    """The message names the field."""
    policy = Policy(version=0, n=4, n_max=8)
    with pytest.raises(PolicyError, match="n_min"):
        policy.successor(n_min=1, reason="")
    with pytest.raises(PolicyError, match="exploration: "):
        policy.successor(exploration=2, reason="")


def test_a_newer_programs_fields_are_ignored() -> None:
    """A mixed fleet keeps serving."""
    assert 2 == Policy.parse('{"version": 2, "n": 1, "n_max": 1, "share": 0.5}', n_limit=16).version


def test_a_document_without_canary_is_read() -> None:
    """It has one policy, at the settings' URLs."""
    document = (
        '{"version": 7, "adapter": "rft-1", "n": 4, "n_max": 8, "default_temperature": 0.5, "exploration": 0.02, '
        '"reason": "gate passed", "created": "2026-11-01T03:30:00Z"}'
    )
    policy = Policy.parse(document, n_limit=16)
    assert (7, "rft-1", 4, (), None) == (policy.version, policy.adapter, policy.n, policy.urls, policy.second)
    assert ((),) == policy.pools


def test_a_canary_has_the_numbers_below_its_share_and_a_holdback_those_above() -> None:
    """So conversations move only from the old policy to the new one."""
    canary = Policy(version=1, adapter="old", n=4, n_max=8, canary=Canary(adapter="new", n=2, share=0.1))
    holdback = Policy(
        version=2, adapter="new", n=2, n_max=8, canary=Canary(adapter="old", n=4, share=0.1, holdback=True)
    )
    assert ["canary", "stable", "stable"] == [canary.arm_at(place).name for place in (0.09, 0.1, 0.99)]
    assert ["stable", "stable", "holdback"] == [holdback.arm_at(place).name for place in (0.0, 0.89, 0.9)]
    assert ["new", "old"] == [canary.arm_at(place).adapter for place in (0.0, 0.5)]


def test_a_successor_does_not_inherit_undoes() -> None:
    """Only the rollback itself undoes a trial, not the versions after it."""
    rolled_back = Policy(version=1, n=4, n_max=8).successor(reason="worse", undoes="trial-1")
    assert ("trial-1", None) == (rolled_back.undoes, rolled_back.successor(reason="next").undoes)


def test_settings_are_version_0() -> None:
    """An N above n_max raises n_max: exploration must see the N that serves."""
    policy = Policy.from_settings(PolicySettings(n=12, n_max=8, adapter="a", default_temperature=0.5, exploration=0.1))
    assert (0, 12, 12, "a", 0.5, 0.1) == (
        policy.version,
        policy.n,
        policy.n_max,
        policy.adapter,
        policy.default_temperature,
        policy.exploration,
    )
