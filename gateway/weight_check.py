"""A weight check: a few greedy answers with log-probabilities tell which weights answer under an adapter's name.

TGI serves the base under a name that it does not know, and says nothing of it. So what an adapter answers to three
prompts is published with the policy, beside what the base thinks of the same answer; with s what was served, a what
the adapter gives and b what the base gives, the place on the line between them is Σ (a − b)(s − b) / Σ (a − b)².
It is 1 where the adapter answers and 0 where the base does (``distill.promotion.canary`` has the whole check).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

LEAST_LOGPROB = -12.0  # below it a log-probability is noise
_LOW, _HIGH = 0.5, 1.5

Logprobs = Mapping[str, float]
Served = Sequence[tuple[str, Logprobs]]
"""The tokens of an answer, each with the log-probabilities of the likeliest ones there."""


class CheckedPrompt(BaseModel):
    """A prompt, the adapter's greedy answer, and what adapter and base think likeliest at each of its tokens."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    prompt: str
    tokens: tuple[str, ...] = Field(min_length=1)
    adapter: tuple[dict[str, float], ...]
    base: tuple[dict[str, float], ...]

    @model_validator(mode="after")
    def _a_place_a_token(self) -> CheckedPrompt:
        if not len(self.tokens) == len(self.adapter) == len(self.base) or not all((*self.adapter, *self.base)):
            raise ValueError("each token needs the log-probabilities of adapter and base")
        return self


WeightCheck = tuple[CheckedPrompt, ...]


def place(check: WeightCheck, served: Sequence[Served]) -> float:
    """Return where the served answers stand between the base (0) and the adapter (1)."""
    across = squared = 0.0
    for expected, answer in zip(check, served, strict=True):
        for token, adapter, base, (drawn, likely) in zip(
            expected.tokens, expected.adapter, expected.base, answer, strict=False
        ):
            for text, logprob in likely.items():
                if text not in adapter and text not in base:
                    continue  # unlikely to both, and how unlikely is not known
                own, other = _at(adapter, text), _at(base, text)
                across += (own - other) * (max(logprob, LEAST_LOGPROB) - other)
                squared += (own - other) ** 2
            if drawn != token:
                break  # from here on the two answer different texts
    return across / squared if squared else 1.0


def passed(at: float) -> bool:
    """Return whether the adapter answers, and not the base or something else."""
    return _LOW <= at <= _HIGH


def _at(likely: Logprobs, token: str) -> float:
    return max(likely.get(token, min(likely.values())), LEAST_LOGPROB)
