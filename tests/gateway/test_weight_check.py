"""The served log-probabilities tell which weights serve."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.policy import Canary, Policy
from gateway.weight_check import CheckedPrompt, Served, adapter_position, passed

ADAPTER = ({"a": -0.1, "b": -3.0}, {"c": -0.2, "d": -2.0})
BASE = ({"a": -2.0, "b": -0.3}, {"c": -1.5, "d": -0.4})
CHECK = (CheckedPrompt(prompt="p", tokens=("a", "c"), adapter=ADAPTER, base=BASE),)


def between(share: float, tokens: tuple[str, ...] = ("a", "c")) -> list[Served]:
    """Return the answers of weights at this position between the base and the adapter."""
    at = [
        {text: base[text] + share * (adapter[text] - base[text]) for text in base}
        for adapter, base in zip(ADAPTER, BASE, strict=True)
    ]
    return [list(zip(tokens, at, strict=True))]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 2.0])
def test_the_position_is_that_of_the_served_weights(share: float) -> None:
    assert pytest.approx(share) == adapter_position(CHECK, between(share))


@pytest.mark.parametrize(("position", "passes"), [(0.49, False), (0.5, True), (1.0, True), (1.5, True), (1.51, False)])
def test_only_positions_near_the_adapter_pass(position: float, passes: bool) -> None:
    assert passes == passed(position)


def test_nothing_is_compared_after_a_differing_token() -> None:
    strange = [("b", between(1.0)[0][0][1]), ("c", {"c": -9.0})]
    assert pytest.approx(1.0) == adapter_position(CHECK, [strange])


@pytest.mark.parametrize("change", [{"tokens": ()}, {"adapter": ADAPTER[:1]}, {"base": ({}, {})}])
def test_an_inconsistent_check_is_refused(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"prompt": "p", "tokens": ("a", "c"), "adapter": ADAPTER, "base": BASE} | change
    with pytest.raises(ValidationError):
        CheckedPrompt.model_validate(fields)


def test_a_policy_carries_the_checks_of_its_adapters() -> None:
    """Older policies have none."""
    policy = Policy(version=1, n=1, n_max=2, adapter="rft-1", checks={"rft-1": CHECK, "rft-0": CHECK})
    read = Policy.parse(policy.model_dump_json(), n_limit=8)
    assert [("rft-1", CHECK)] == [(arm.adapter, check) for arm, check in read.weight_checks()]
    both = read.successor(reason="", canary=Canary(adapter="rft-0", n=1, share=0.1).model_dump())
    assert ["rft-1", "rft-0"] == [arm.adapter for arm, _ in both.weight_checks()]
    assert [] == Policy.parse('{"version": 1, "n": 1, "n_max": 2, "adapter": "rft-1"}', n_limit=8).weight_checks()
