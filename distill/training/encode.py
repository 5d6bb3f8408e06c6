"""Examples as token ids, through the chat template that the serving backend renders too. Done once, before training."""

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
"""Label of a token that carries no loss."""


class LeftOut(StrEnum):
    """Why a curated example did not train after all."""

    TOO_LONG = "too_long"
    NO_LOSER = "no_loser"
    TEMPLATE = "template_refuses"


@dataclass(slots=True)
class Encoded:
    """Rows in the columns that TRL's trainers read, and what was left out under which reason.

    A winner's row holds ``input_ids`` and ``labels``; a pair's ``prompt_ids``, ``chosen_ids``, ``rejected_ids``.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    longest_tokens: int = 0

    def add(self, length: int, limit: int, **row: list[int]) -> None:
        """Take the row, or count it as too long."""
        if length > limit:
            self.left_out[LeftOut.TOO_LONG] += 1
            return
        self.rows.append(row)
        self.longest_tokens = max(self.longest_tokens, length)


def encode_winners(tokenizer: Any, examples: Sequence[Example], max_length_tokens: int) -> Encoded:
    """Rows for SFT: loss on the winner and its end-of-turn token, none on the conversation before it."""
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
    """Rows for DPO and its kin: the winner against the answer that ``objectives.rejected`` names."""
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
    """Token ids of the conversation up to the assistant's opening, and of the answer with its end-of-turn token.

    What a template writes after the end of the turn (a newline, mostly) is cut off: the backend stops before it.

    Raises:
        ValueError: The rendered conversation is not the beginning of the rendered conversation with its answer.
    """
    prompt_text = _render(tokenizer, messages, opening=True)
    whole_text = _render(tokenizer, [*messages, {"role": "assistant", "content": answer}], opening=False)
    if not whole_text.startswith(prompt_text):
        raise ValueError("the template renders the conversation differently once it is answered")
    prompt = _ids(tokenizer, prompt_text)
    ids = _ids(tokenizer, whole_text[len(prompt_text) :])
    ends = [place for place, token in enumerate(ids) if token == tokenizer.eos_token_id]
    return prompt, ids[: ends[-1] + 1] if ends else ids


_REFUSALS = (TemplateError, TypeError, ValueError, KeyError)


def _render(tokenizer: Any, messages: Sequence[JsonObject], *, opening: bool) -> str:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=opening)
    return cast("str", text)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
