"""Conversations as a reward model reads them: their BOS, and the tokens kept of one that is too long."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from gateway.reward.chat_text import ChatText, kept_tokens
from gateway.reward.rendering import ChatRenderer
from gateway.types import Message
from tests.gateway.reward.texts import ask
from tests.tokenizers import CHAT_TEMPLATE, byte_level, sentence_piece

ROLES = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|end|>{% endfor %}"
# Writes an answer's reasoning anew, as templates of reasoning models do.
THINKS = (
    "{% for m in messages %}[{{ m.role }}]{% if '</think>' in m.content %}<think>\n"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip() }}\n</think>\n"
    "{{ m.content.split('</think>')[-1].strip() }}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
)
DROPS = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] | trim }}<|end|>{% endfor %}"
UPPER = "{% for m in messages %}[{{ m.role }}]{{ m.content | upper }}<|end|>{% endfor %}"
NOTHING_AFTER = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
SHORT_ANSWER = "[{{ messages[0].content }}] {% if messages[-1].content | length > 9 %}long{% endif %}"
TEMPLATES = [CHAT_TEMPLATE, ROLES, THINKS, DROPS, UPPER, NOTHING_AFTER, SHORT_ANSWER]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(("template", "bos"), [("{{ bos_token }}" + ROLES, 1), (ROLES, 0)])
def test_a_conversation_has_the_bos_that_its_template_writes_or_its_tokenizer_adds_once(
    template: str, bos: int, *, adds_bos: bool
) -> None:
    tokenizer = byte_level(template, adds_bos=adds_bos)
    chat = ChatText(tokenizer)
    ids = chat.ids(chat.render(ask("two"), "four"))
    assert (bos or adds_bos) == ids.count(tokenizer.bos_token_id)
    if bos:
        messages = [*ask("two"), {"role": "assistant", "content": "four"}]
        assert tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False) == ids


def test_a_role_token_that_is_the_bos_stays_if_the_tokenizer_adds_none() -> None:
    """SmolLM2's BOS is the token that begins every turn."""
    tokenizer = byte_level(
        "{% for m in messages %}<|bos|>{{ m.role }} {{ m.content }}<|end|>{% endfor %}", adds_bos=False
    )
    assert ChatText(tokenizer).render(ask("two"), "four").startswith("<|bos|>user two")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("limit", [16, 17, 40, 64])
@given(prompt=st.integers(0, 80), answer=st.integers(0, 80), thought=st.integers(0, 40), what=st.sampled_from("w ?é\n"))
def test_no_template_makes_an_input_longer_than_its_limit(
    template: str, limit: int, prompt: int, answer: int, thought: int, what: str
) -> None:
    chat = ChatText(_TOKENIZERS.setdefault(template, byte_level(template)))
    messages = ask(f"hello {what}" * prompt)
    text = chat.render(messages, f"<think>{'why ' * thought}</think>" * bool(thought) + f"four{what}" * answer)
    spans = chat.spans(text)
    kept = chat.kept(messages, text, spans, limit)
    assert kept == sorted(set(kept))
    assert len(kept) == min(limit, len(spans)) or len(spans) <= limit


_TOKENIZERS: dict[str, PreTrainedTokenizerFast] = {}


@pytest.mark.parametrize("tokenizer", [byte_level(ROLES), byte_level(THINKS), sentence_piece(UPPER)], ids=str)
@pytest.mark.parametrize("limit", [24, 25, 64])
@pytest.mark.parametrize("answer", ["four", "<think>" + "why " * 20 + "</think>four", "four é " * 60, " ", ""])
def test_a_rendered_text_tokenizes_to_no_more_than_its_limit(
    tokenizer: PreTrainedTokenizerFast, limit: int, answer: str, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    rendered = ChatRenderer(str(tmp_path)).render(ask("hello world é " * 60), answer, limit)
    assert rendered.truncated
    assert rendered.tokens == len(tokenizer(rendered.text)["input_ids"]) <= limit


def test_the_prompt_loses_its_beginning_and_keeps_the_answer_and_the_templates_end() -> None:
    chat = ChatText(tokenizer := byte_level("{{ bos_token }}" + ROLES))
    messages: list[Message] = ask("hello " * 50 + "what is two and two")
    text = chat.render(messages, "four")
    ids = chat.ids(text)
    kept = chat.kept(messages, text, chat.spans(text), 40)
    cut = tokenizer.decode([ids[place] for place in kept])
    assert cut.startswith("<|bos|>")
    assert cut.endswith("what is two and two<|end|>[assistant] four<|end|>")


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        (8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (7, [0, 2, 3, 4, 5, 6, 7]),  # the prompt's beginning goes first
        (5, [0, 4, 5, 6, 7]),
        (4, [0, 4, 5, 7]),  # then the answer's end
        (2, [0, 7]),
        (1, [7]),
    ],
)
def test_kept_tokens_at_each_limit(limit: int, kept: list[int]) -> None:
    """A BOS that the tokenizer adds, three tokens of prompt, three of answer, one after it."""
    spans = [(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)]
    assert kept == kept_tokens(spans, (3, 6), limit, keep_first=True)
