"""The weight check: tell from a few greedy answers which weights serve under an adapter's name.

TGI serves the base model under a name that it does not know, without an error. So a policy is published with the
adapter's greedy answers to three prompts and the log-probabilities of adapter and base at each token. With s the served
log-probability, a the adapter's and b the base's, the position between the two is Σ (a − b)(s − b) / Σ (a − b)²: 1 for
the adapter, 0 for the base (``distill.promotion.weight_check`` has the whole check).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

LEAST_LOGPROB = -12.0  # below it a log-probability is noise
_LOW, _HIGH = 0.5, 1.5

Logprobs = Mapping[str, float]
Served = Sequence[tuple[str, Logprobs]]
"""The tokens of an answer, each with the log-probabilities of the likeliest tokens at its position."""


class CheckedPrompt(BaseModel):
    """A prompt, the adapter's greedy answer, and the likeliest tokens at each of its positions by adapter and base."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    prompt: str
    tokens: tuple[str, ...] = Field(min_length=1)
    adapter: tuple[dict[str, float], ...]
    base: tuple[dict[str, float], ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> CheckedPrompt:
        if not len(self.tokens) == len(self.adapter) == len(self.base) or not all((*self.adapter, *self.base)):
            raise ValueError("each token needs the log-probabilities of adapter and base")
        return self


WeightCheck = tuple[CheckedPrompt, ...]


def adapter_position(check: WeightCheck, served: Sequence[Served]) -> float:
    """Return the position of the served answers between the base (0) and the adapter (1)."""
    across = squared = 0.0
    for expected, answer in zip(check, served, strict=True):
        for token, adapter, base, (served_token, likely) in zip(
            expected.tokens, expected.adapter, expected.base, answer, strict=False
        ):
            for text, logprob in likely.items():
                if text not in adapter and text not in base:
                    continue  # unlikely for both; neither log-probability is known
                of_adapter, of_base = _logprob(adapter, text), _logprob(base, text)
                across += (of_adapter - of_base) * (max(logprob, LEAST_LOGPROB) - of_base)
                squared += (of_adapter - of_base) ** 2
            if served_token != token:
                break  # after this token the two texts differ
    return across / squared if squared else 1.0


def passed(position: float) -> bool:
    """Return whether the adapter serves, and not the base or other weights."""
    return _LOW <= position <= _HIGH


def _logprob(likely: Logprobs, token: str) -> float:
    return max(likely.get(token, min(likely.values())), LEAST_LOGPROB)
