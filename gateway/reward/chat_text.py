"""Render conversations by a reward model's own chat template, and cut those that are too long.

Needs a fast tokenizer of transformers, but no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from jinja2 import TemplateError

from gateway.errors import RewardRefused
from gateway.types import Message

_MARK = "\ue000"  # of the private use area: no template and hardly any conversation contains it

Span = tuple[int, int]
"""Begin and end of a token in a text; (0, 0) for one that the tokenizer adds, such as BOS."""


class ChatText:
    """The chat template of a fast tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("", verbose=False)["input_ids"][:1] == [bos]
        self._own_bos: str = tokenizer.bos_token if adds_bos else ""

    def render(self, messages: Sequence[Message], answer: str) -> str:
        """Return the conversation with ``answer`` as its last turn, ready for the tokenizer.

        The leading BOS is removed if the tokenizer adds its own; it stays if only the template writes it.

        Raises:
            RewardRefused: The chat template refuses the conversation.
        """
        turns = [{**message, "content": message["content"] or ""} for message in messages]
        turns.append({"role": "assistant", "content": answer})
        try:
            text: str = self._tokenizer.apply_chat_template(turns, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise RewardRefused("the reward model's chat template refuses this conversation") from error
        return printable(text).removeprefix(self._own_bos)

    def ids(self, text: str) -> list[int]:
        return cast("list[int]", self._tokenizer(text, verbose=False)["input_ids"])

    def spans(self, text: str) -> list[Span]:
        return cast("list[Span]", self._tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"])

    def kept(self, messages: Sequence[Message], text: str, spans: Sequence[Span], limit: int) -> list[int]:
        """Return the positions of at most ``limit`` tokens to keep of a rendered conversation that is too long."""
        keep_first = self.ids(text)[:1] == [self._tokenizer.bos_token_id]
        return kept_tokens(spans, self._answer_span(messages, text), limit, keep_first=keep_first)

    def _answer_span(self, messages: Sequence[Message], text: str) -> Span:
        """Return the answer's begin and end in a rendered conversation.

        A template may change the answer (drop its reasoning, strip spaces), so the answer is the text between the
        template's own head and tail. If these cannot be found, the answer counts as the end of the prompt.
        """
        head, mark, tail = self.render(messages, _MARK).rpartition(_MARK)
        if not mark or len(head) + len(tail) > len(text) or not (text.startswith(head) and text.endswith(tail)):
            return len(text), len(text)
        return len(head), len(text) - len(tail)


def kept_tokens(spans: Sequence[Span], answer: Span, limit: int, *, keep_first: bool) -> list[int]:
    """Return the positions of at most ``limit`` tokens to keep of a text that is too long.

    The prompt loses its beginning. An answer that alone is too long loses its own end. The template's text after it
    stays, because a model reads its reward from the last token.

    Args:
        spans: Each token's begin and end in the text.
        answer: The answer's.
        limit: Largest number of tokens.
        keep_first: Keep the first token, a BOS.
    """
    start, stop = answer
    first = 1 if keep_first else 0
    after = [place for place, span in enumerate(spans) if place >= first and (span[1] > stop or span == (0, 0))]
    of_answer = [place for place, span in enumerate(spans) if place >= first and start < span[1] <= stop]
    of_prompt = [place for place, span in enumerate(spans) if place >= first and 0 < span[1] <= start]
    room = limit - first - len(after)
    if room < 0:
        return list(range(len(spans) - limit, len(spans)))
    of_answer = of_answer[:room]
    room -= len(of_answer)
    return sorted([*range(first), *of_prompt[max(0, len(of_prompt) - room) :], *of_answer, *after])


def printable(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()
