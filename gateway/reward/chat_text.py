"""Conversations as a reward model's own chat template writes them, and what is kept of one that is too long.

Needs a fast tokenizer of transformers, and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from jinja2 import TemplateError

from gateway.errors import RewardRefused
from gateway.types import Message

_MARK = "\ue000"  # of the private use area: no template and hardly a conversation has it

Span = tuple[int, int]
"""Where a token lies in a text; (0, 0) for one that the tokenizer adds, as BOS."""


class ChatText:
    """Writes conversations with a tokenizer's chat template, and cuts those that are too long.

    Args:
        tokenizer: A fast tokenizer with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        bos = tokenizer.bos_token_id
        adds_bos = bos is not None and tokenizer("", verbose=False)["input_ids"][:1] == [bos]
        self._own_bos: str = tokenizer.bos_token if adds_bos else ""

    def render(self, messages: Sequence[Message], answer: str) -> str:
        """The conversation with ``answer`` as its last turn, as the tokenizer has to be given it.

        The leading BOS is left out where the tokenizer adds its own, and stays where only the template writes it.

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
        """Token ids of a rendered text."""
        return cast("list[int]", self._tokenizer(text, verbose=False)["input_ids"])

    def spans(self, text: str) -> list[Span]:
        """Where each of these tokens lies in the text."""
        return cast("list[Span]", self._tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"])

    def kept(self, messages: Sequence[Message], text: str, spans: Sequence[Span], limit: int) -> list[int]:
        """Positions of the tokens, at most ``limit``, that are kept of a rendered conversation that is too long."""
        keep_first = self.ids(text)[:1] == [self._tokenizer.bos_token_id]
        return kept_tokens(spans, self._answer_span(messages, text), limit, keep_first=keep_first)

    def _answer_span(self, messages: Sequence[Message], text: str) -> Span:
        """Where the answer lies in a rendered conversation.

        A template may write another text than the answer it was given (without its reasoning, without spaces around
        it), so the answer is what stands between the template's own head and tail. Where these cannot be told the
        answer counts as part of the prompt, at whose end it stands.
        """
        head, mark, tail = self.render(messages, _MARK).rpartition(_MARK)
        if not mark or len(head) + len(tail) > len(text) or not (text.startswith(head) and text.endswith(tail)):
            return len(text), len(text)
        return len(head), len(text) - len(tail)


def kept_tokens(spans: Sequence[Span], answer: Span, limit: int, *, keep_first: bool) -> list[int]:
    """Positions of the tokens that are kept of a text that is too long, at most ``limit``.

    The prompt loses its beginning. An answer that alone is too long loses its own end. What the template writes after
    it stays, for a model reads its reward from the last token.

    Args:
        spans: Where each token lies in the text.
        answer: Where the answer lies.
        limit: Most tokens.
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
    """``text`` without the lone surrogates that JSON can carry and tokenizers refuse."""
    return text.encode("utf-8", "replace").decode()
