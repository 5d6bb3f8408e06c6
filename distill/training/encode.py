"""Encode examples, once before training, to the token ids of serving: the served prompt, then the drawn answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from jinja2 import TemplateError

from distill.dataset.example import Example
from distill.training.objectives import rejected
from gateway.types import JsonObject

IGNORED = -100
"""Label of a token without loss."""


class LeftOut(StrEnum):
    """Reasons why a curated example is not trained on."""

    TOO_LONG = "too_long"
    NO_LOSER = "no_loser"
    TEMPLATE = "template_refuses"


@dataclass(slots=True)
class Encoded:
    """Rows in the columns of TRL's trainers, and the numbers of examples left out by reason.

    A winner's row holds ``input_ids`` and ``labels``; a pair's ``prompt_ids``, ``chosen_ids``, ``rejected_ids``.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    longest_tokens: int = 0

    def add(self, length: int, limit: int, **row: list[int]) -> None:
        """Add the row, or count it as too long."""
        if length > limit:
            self.left_out[LeftOut.TOO_LONG] += 1
            return
        self.rows.append(row)
        self.longest_tokens = max(self.longest_tokens, length)


def encode_winners(tokenizer: Any, examples: Sequence[Example], max_length_tokens: int) -> Encoded:
    """Encode rows for SFT: loss on the winner and its end-of-turn token, none on the conversation before it."""
    encoded = Encoded()
    for example in examples:
        try:
            prompt, answer = encode_turn(tokenizer, example.messages, example.winner.text)
        except _REFUSALS:
            encoded.left_out[LeftOut.TEMPLATE] += 1
            continue
        labels = [IGNORED] * len(prompt) + answer
        encoded.add(len(labels), max_length_tokens, input_ids=prompt + answer, labels=labels)
    return encoded


def encode_pairs(tokenizer: Any, examples: Sequence[Example], max_length_tokens: int) -> Encoded:
    """Encode rows for DPO and IPO: the winner and the answer that ``objectives.rejected`` selects."""
    encoded = Encoded()
    for example in examples:
        loser = rejected(example)
        if loser is None:
            encoded.left_out[LeftOut.NO_LOSER] += 1
            continue
        try:
            prompt, chosen = encode_turn(tokenizer, example.messages, example.winner.text)
            _, worse = encode_turn(tokenizer, example.messages, loser.text)
        except _REFUSALS:
            encoded.left_out[LeftOut.TEMPLATE] += 1
            continue
        length = len(prompt) + max(len(chosen), len(worse))
        encoded.add(length, max_length_tokens, prompt_ids=prompt, chosen_ids=chosen, rejected_ids=worse)
    return encoded


def encode_turn(tokenizer: Any, messages: Sequence[JsonObject], answer: str) -> tuple[list[int], list[int]]:
    """Return token ids of the conversation up to the assistant's opening, and of the answer with its end-of-turn token.

    The prompt is rendered as the backend renders it, and the answer follows as the model wrote it: templates that
    change answers (an empty think block, no spaces at the ends) do not affect training. Only the end of the turn comes
    from the template; what it writes after that (usually a newline) is removed, because the backend stops before it.

    Raises:
        ValueError: The template does not write the answer, or the answer cannot be tokenized after the prompt.
    """
    prompt_text = _render(tokenizer, messages, opening=True)
    _, mark, end = _render(tokenizer, [*messages, {"role": "assistant", "content": _MARK}], opening=False).rpartition(
        _MARK
    )
    if not mark:
        raise ValueError("the template does not write the assistant's answer")
    if tokenizer.eos_token and tokenizer.eos_token in end:
        end = end[: end.index(tokenizer.eos_token)] + tokenizer.eos_token
    prompt = _ids(tokenizer, prompt_text)
    return prompt, _ids_after(tokenizer, prompt, prompt_text, answer + end)


def _ids_after(tokenizer: Any, prompt: list[int], prompt_text: str, text: str) -> list[int]:
    """Return token ids of a text that follows a prompt whose tokens are fixed.

    Prompt and text are tokenized together, because SentencePiece adds a space before a text alone. Where a token would
    span the boundary (a prompt that ends with a space), serving keeps the prompt's own token; then the text is
    tokenized after a special token, which no other token spans.
    """
    whole = _ids(tokenizer, prompt_text + text)
    if whole[: len(prompt)] == prompt:
        return whole[len(prompt) :]
    special = tokenizer.eos_token or tokenizer.bos_token or ""
    alone = _ids(tokenizer, special + text)[len(_ids(tokenizer, special)) :]
    if tokenizer.decode(prompt + alone) != tokenizer.decode(whole):
        raise ValueError("the answer cannot be tokenized as it follows the prompt")
    return alone


_MARK = "\ue000"  # a private use character in place of the answer
_REFUSALS = (TemplateError, TypeError, ValueError, KeyError)


def _render(tokenizer: Any, messages: Sequence[JsonObject], *, opening: bool) -> str:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opening)
    return cast("str", text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
