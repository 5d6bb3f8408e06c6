"""Which weights answer is seen in their log-probabilities."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.policy import Canary, Policy
from gateway.weight_check import CheckedPrompt, Served, passed, place

ADAPTER = ({"a": -0.1, "b": -3.0}, {"c": -0.2, "d": -2.0})
BASE = ({"a": -2.0, "b": -0.3}, {"c": -1.5, "d": -0.4})
CHECK = (CheckedPrompt(prompt="p", tokens=("a", "c"), adapter=ADAPTER, base=BASE),)


def between(share: float, tokens: tuple[str, ...] = ("a", "c")) -> list[Served]:
    """What weights answer that lie so far on the way from the base to the adapter."""
    at = [
        {text: base[text] + share * (adapter[text] - base[text]) for text in base}
        for adapter, base in zip(ADAPTER, BASE, strict=True)
    ]
    return [list(zip(tokens, at, strict=True))]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 2.0])
def test_the_place_is_where_the_weights_stand(share: float) -> None:
    assert pytest.approx(share) == place(CHECK, between(share))


@pytest.mark.parametrize(("at", "well"), [(0.49, False), (0.5, True), (1.0, True), (1.5, True), (1.51, False)])
def test_it_passes_near_the_adapter_only(at: float, well: bool) -> None:
    assert well == passed(at)


def test_after_another_token_nothing_is_compared() -> None:
    strange = [("b", between(1.0)[0][0][1]), ("c", {"c": -9.0})]
    assert pytest.approx(1.0) == place(CHECK, [strange])


@pytest.mark.parametrize("change", [{"tokens": ()}, {"adapter": ADAPTER[:1]}, {"base": ({}, {})}])
def test_a_check_that_makes_no_sense_cannot_be_made(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"prompt": "p", "tokens": ("a", "c"), "adapter": ADAPTER, "base": BASE} | change
    with pytest.raises(ValidationError):
        CheckedPrompt.model_validate(fields)


def test_a_document_carries_the_checks_of_its_adapters() -> None:
    """Older documents have none."""
    policy = Policy(version=1, n=1, n_max=2, adapter="rft-1", checks={"rft-1": CHECK, "rft-0": CHECK})
    read = Policy.parse(policy.model_dump_json(), n_limit=8)
    assert [("rft-1", CHECK)] == [(arm.adapter, check) for arm, check in read.weight_checks()]
    both = read.successor(reason="", canary=Canary(adapter="rft-0", n=1, share=0.1).model_dump())
    assert ["rft-1", "rft-0"] == [arm.adapter for arm, _ in both.weight_checks()]
    assert [] == Policy.parse('{"version": 1, "n": 1, "n_max": 2, "adapter": "rft-1"}', n_limit=8).weight_checks()
