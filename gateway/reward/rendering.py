"""Render conversations as text, for reward servers that read only text (vLLM, SGLang), by the model's chat template.

Needs transformers (the ``reward`` extra) but no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from gateway.errors import RewardRefused, SettingsError
from gateway.reward.chat_text import ChatText, Span
from gateway.types import Message

_CUTS = 8  # attempts: cut text can have a few more tokens than it had as part of the whole; then more is cut


class Rendered(NamedTuple):
    """A text that fits the server's model. ``truncated``: it was cut to fit."""

    text: str
    tokens: int
    truncated: bool


class ChatRenderer:
    """Renders with the chat template of a tokenizer (a folder or hub id). Blocking; one thread uses it.

    Raises:
        SettingsError: No such tokenizer, or it has no chat template.
    """

    def __init__(self, tokenizer: str) -> None:
        try:
            loaded: Any = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise SettingsError(f"reward tokenizer {tokenizer} cannot be loaded: {error}") from error
        if not loaded.chat_template:
            raise SettingsError(f"reward tokenizer {tokenizer} has no chat template")
        self._chat = ChatText(loaded)

    def render(self, messages: Sequence[Message], answer: str, max_length_tokens: int) -> Rendered:
        """Return the conversation with ``answer`` as its last turn, in at most ``max_length_tokens``.

        A conversation that does not fit loses the beginning of its prompt; an answer that alone is too long loses its
        own end. A leading BOS is removed if the server's tokenizer adds its own.

        Raises:
            RewardRefused: The chat template refuses the conversation, or it cannot be cut to fit.
        """
        text = self._chat.render(messages, answer)
        tokens = len(self._chat.ids(text))
        if tokens <= max_length_tokens:
            return Rendered(text, tokens, False)
        spans, room = self._chat.spans(text), max_length_tokens
        for _ in range(_CUTS):
            cut = _joined(text, spans, self._chat.kept(messages, text, spans, room))
            tokens = len(self._chat.ids(cut))
            if tokens <= max_length_tokens:
                return Rendered(cut, tokens, True)
            room = max(1, room - (tokens - max_length_tokens))
        raise RewardRefused(f"this conversation cannot be cut to {max_length_tokens} tokens")


def _joined(text: str, spans: Sequence[Span], kept: Sequence[int]) -> str:
    """Return the text of the kept tokens, with the spaces between neighbours, which tokens may not cover."""
    stretches: list[list[int]] = []
    last = -1
    for place in kept:
        begin, end = spans[place]
        if end == 0:
            continue  # added by the tokenizer; the server's adds it too
        if stretches and place == last + 1:
            stretches[-1][1] = end
        else:
            stretches.append([begin, end])
        last = place
    return "".join(text[begin:end] for begin, end in stretches)
