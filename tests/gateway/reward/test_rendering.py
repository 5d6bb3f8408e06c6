"""Conversations rendered as text for servers that read only text."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import RewardError, SettingsError
from gateway.reward.model import RewardModel
from gateway.reward.rendering import ChatRenderer
from gateway.types import Message
from tests.gateway.reward.texts import ask


@pytest.fixture(scope="module")
def renderer(decoder: str) -> ChatRenderer:
    return ChatRenderer(decoder)


@pytest.fixture(scope="module")
def decoder_model(decoder: str) -> RewardModel:
    return RewardModel.load(decoder, device="cpu", max_length_tokens=64)


def test_the_chat_template_renders_without_the_leading_bos(renderer: ChatRenderer) -> None:
    rendered = renderer.render(ask("hi"), "hello", 64)
    assert ("<|user|>hi<|end|><|assistant|>hello<|end|>", False) == (rendered.text, rendered.truncated)


def test_a_text_rendered_here_is_scored_like_its_conversation(
    renderer: ChatRenderer, decoder_model: RewardModel
) -> None:
    rendered = renderer.render(ask("Paris?"), "It is Paris.", 64)
    assert decoder_model.encode(ask("Paris?"), "It is Paris.") == decoder_model.encode_text(rendered.text)


@pytest.mark.parametrize("answer", ["a short answer", "", "short and sweet " * 3])
def test_a_long_conversation_loses_the_beginning_of_its_prompt_and_keeps_its_answer(
    renderer: ChatRenderer, decoder_model: RewardModel, answer: str
) -> None:
    rendered = renderer.render(ask("zebra " * 300 + "the last words"), answer, 64)
    assert rendered.truncated
    assert rendered.text.endswith(f"{answer.strip()}<|end|>")
    assert "last words" in rendered.text or answer.startswith("short")
    assert decoder_model.encode_text(rendered.text).length <= 64
    assert not decoder_model.encode_text(rendered.text).prompt_truncated


def test_an_answer_that_alone_is_too_long_keeps_its_beginning(
    renderer: ChatRenderer, decoder_model: RewardModel
) -> None:
    rendered = renderer.render(ask("hi"), "first " + "word " * 500 + "final", 64)
    assert rendered.truncated
    assert rendered.text.startswith("first word")
    assert rendered.text.endswith("<|end|>")
    assert "final" not in rendered.text
    assert decoder_model.encode_text(rendered.text).length <= 64


def test_lone_surrogates_become_question_marks(renderer: ChatRenderer) -> None:
    assert "<|assistant|>a?<|end|>" in renderer.render(ask("hi"), "a\ud800", 64).text


def test_a_conversation_that_the_template_refuses_has_no_reward(renderer: ChatRenderer) -> None:
    messages: list[Message] = [*ask("hi"), {"role": "tool", "content": "5", "tool_call_id": "1"}]
    with pytest.raises(RewardError, match="refuses this conversation"):
        renderer.render(messages, "hello", 64)


def test_a_tokenizer_that_cannot_render_is_refused(minilm: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no chat template"):
        ChatRenderer(minilm)
    with pytest.raises(SettingsError, match="cannot be loaded"):
        ChatRenderer(str(tmp_path))
