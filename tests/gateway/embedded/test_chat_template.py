"""SmolLM2's template with tools; without tools it equals that of the GGUF file."""

from __future__ import annotations

import json
from typing import Any

import gguf
import jinja2.sandbox
import pytest

from gateway.embedded.chat_template import CHAT_TEMPLATE
from gateway.embedded.llama import weights_path

USER = {"role": "user", "content": "Weather?"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def rendered(template: str, messages: list[Any], **more: Any) -> str:
    """Render as transformers does."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps  # jinja's own escapes HTML
    return environment.from_string(template).render(messages=messages, **{"add_generation_prompt": True, **more})


@pytest.fixture(scope="module")
def own() -> str:
    field = gguf.GGUFReader(str(weights_path())).fields["tokenizer.chat_template"]
    return str(field.contents())


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [{"role": "system", "content": "Be brief."}, USER],
        [USER, {"role": "system", "content": "Be brief."}, USER],
        [USER, {"role": "assistant", "content": " Rain.\n"}, {"role": "user", "content": ""}],
        [USER, {"role": "assistant", "content": "x"}, {"role": "tool", "content": "18 C"}],
        [{"role": "assistant", "content": "{{ 7 }} {% if %} <tool_call>"}],
    ],
)
@pytest.mark.parametrize("opening", [True, False])
def test_without_tools_every_conversation_is_rendered_as_by_the_files_template(
    own: str, messages: list[Any], opening: bool
) -> None:
    expected = rendered(own, messages, add_generation_prompt=opening)
    assert expected == rendered(CHAT_TEMPLATE, messages, add_generation_prompt=opening)
    assert expected == rendered(CHAT_TEMPLATE, messages, add_generation_prompt=opening, tools=[])


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_tools_are_in_the_system_message_once(system: list[Any]) -> None:
    text = rendered(CHAT_TEMPLATE, [*system, USER, {"role": "assistant", "content": "x"}, USER], tools=[TOOL])
    assert text.startswith("<|im_start|>system\n" + ("Be brief." if system else "You are a helpful AI assistant"))
    assert 1 == text.count('"name": "weather"')
    assert text.index('"name": "weather"') < text.index("Weather?")


@pytest.mark.parametrize("content", [None, "", "Let me look."])
def test_earlier_calls_and_their_results_are_in_the_prompt(content: str | None) -> None:
    turns = [
        USER,
        {"role": "assistant", "content": content, "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "18 C"},
    ]
    text = rendered(CHAT_TEMPLATE, turns)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    text_before = content + "\n" if content else ""
    assert f"<|im_start|>assistant\n{text_before}{call}\n{call}<|im_end|>\n<|im_start|>tool\n18 C<|im_end|>\n" in text
