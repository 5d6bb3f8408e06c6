"""A race costs its prompt once and all that was drawn; a prompt that no server counted costs its bytes."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.best_of_n.cost import most_prompt_tokens, race_cost
from gateway.metering import Meter
from gateway.types import Message, Prompt, Sampling


def prompt(text: str = "hi", **sampling: Any) -> Prompt:
    messages: list[Message] = [{"role": "user", "content": text}]
    return Prompt(messages, Sampling(**sampling))


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([], 0),
        ([(5, 80)], 85),
        ([(5, 80), (5, 20)], 105),
        ([(5, 0)], 5),
        ([(None, 80), (5, 20)], 105),  # one count of the prompt is enough
    ],
)
def test_a_race_costs_its_prompt_once_and_every_candidate(calls: list[tuple[int | None, int]], expected: int) -> None:
    asked = prompt()
    for counted in calls:
        with asked.meter.call(max_tokens=None) as call:
            call.count(*counted)
    assert expected == race_cost(asked)


def test_a_prompt_that_no_server_counted_costs_its_bytes_at_most() -> None:
    asked = prompt("🐝" * 100)
    with asked.meter.call(max_tokens=None) as call:
        call.count(None, 7)
    assert 7 + most_prompt_tokens(asked) == race_cost(asked)
    assert len(b'[[{"role":"user","content":""}],[],null]') + 400 + 64 == most_prompt_tokens(asked)


def test_tools_and_formats_are_part_of_the_prompt() -> None:
    bare = most_prompt_tokens(prompt())
    tool = {"type": "function", "function": {"name": "f" * 1_000, "parameters": {}}}
    assert bare + 1_000 < most_prompt_tokens(prompt(tools=(tool,)))
    assert bare + 1_000 < most_prompt_tokens(prompt(response_format={"type": "x" * 1_000}))


def test_two_prompts_share_no_meter() -> None:
    assert prompt().meter is not prompt().meter
    assert isinstance(prompt().meter, Meter)
