"""A prompt: the conversation that policies answer, so that their answers can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.dataset.split import first_user_text


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to answer. ``kind`` is the kind of its task; empty for a held-out prompt."""

    messages: list[Any]
    kind: str = ""

    @classmethod
    def of_text(cls, text: str, kind: str = "") -> Prompt:
        """Return the prompt that is a single user message."""
        return cls([{"role": "user", "content": text}], kind)

    @property
    def text(self) -> str:
        return first_user_text(self.messages)

    @property
    def is_single_message(self) -> bool:
        """True if the text is the whole conversation."""
        return self.messages == [{"role": "user", "content": self.text}]

    @property
    def key(self) -> str:
        """The text where that is all, else JSON of all messages. Seeds and files depend on it: it must not change."""
        return self.text if self.is_single_message else json.dumps(self.messages, sort_keys=True)


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Return the first ``count`` prompts, taking one of each kind in turn."""
    by_kind: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_kind.setdefault(prompt.kind, []).append(prompt)
    rounds = range(max(map(len, by_kind.values()), default=0))
    in_turn = (kind[place] for place in rounds for kind in by_kind.values() if place < len(kind))
    return [prompt for prompt, _ in zip(in_turn, range(count), strict=False)]
