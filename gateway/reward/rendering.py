"""Conversations as text, for reward servers that read only text (vLLM, SGLang): the model's own chat template, here.

Needs transformers (the ``reward`` extra) but no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import AutoTokenizer

from gateway.errors import RewardError, SettingsError
from gateway.types import Message

_SEAM_TOKENS = 8  # cut text can tokenize to a few more tokens than it had as part of the whole


class Rendered(NamedTuple):
    """A text that fits the server's model, its tokens, and whether its beginning was cut to make it fit."""

    text: str
    tokens: int
    truncated: bool


class ChatRenderer:
    """Renders with a tokenizer's chat template. Blocking; one thread uses it.

    Args:
        tokenizer: Folder or hub id.
        max_length_tokens: Longest text.

    Raises:
        SettingsError: No such tokenizer, or it has no chat template.
    """

    def __init__(self, tokenizer: str, *, max_length_tokens: int) -> None:
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise SettingsError(f"reward tokenizer {tokenizer} cannot be loaded: {error}") from error
        if not self._tokenizer.chat_template:
            raise SettingsError(f"reward tokenizer {tokenizer} has no chat template")
        self._max_tokens = max_length_tokens

    def render(self, messages: Sequence[Message], answer: str) -> Rendered:
        """The conversation with ``answer`` as its last turn, without the leading BOS (servers add their own).

        What does not fit loses the beginning of its prompt; an answer that alone is too long loses its own end.

        Raises:
            RewardError: The chat template refuses the conversation.
        """
        turns = [{**message, "content": message["content"] or ""} for message in messages]
        turns.append({"role": "assistant", "content": answer})
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RewardError("the reward model's chat template refuses this conversation") from error
        text = text.encode("utf-8", "replace").decode().removeprefix(self._tokenizer.bos_token or "")
        spans = self._spans(text)
        if len(spans) <= self._max_tokens:
            return Rendered(text, len(spans), False)
        return self._cut(text, spans, answer.encode("utf-8", "replace").decode().strip())

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token lies in the text; the special ones that the server adds lie at (0, 0)."""
        spans: list[tuple[int, int]] = self._tokenizer(text, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        return spans

    def _cut(self, text: str, spans: list[tuple[int, int]], answer: str) -> Rendered:
        room = self._max_tokens - _SEAM_TOKENS
        start = text.rfind(answer)
        tail = text[start + len(answer) :]
        of_prompt = [span for span in spans if span[1] <= start]
        of_answer = [span for span in spans if start < span[1] <= start + len(answer)]
        room -= len(spans) - len(of_prompt) - len(of_answer)
        kept_of_prompt = max(0, room - len(of_answer))
        begin = of_prompt[-kept_of_prompt][0] if kept_of_prompt else start
        end = of_answer[min(room, len(of_answer)) - 1][1] if of_answer else start
        return Rendered(text[begin:end] + tail, self._max_tokens, True)
