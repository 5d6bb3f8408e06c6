"""Curated data: examples for training, and held-out prompts."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.types import JsonObject


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """A finished candidate of a race, with its reward."""

    text: str
    reward: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Example:
    """A curated race: the answer to ``messages`` that the model is trained on, and the answers it beat.

    ``key`` is ``split.conversation_key(messages)``. ``losers`` ascend by reward, none equals the winner's text.
    ``margin_sd`` is (winner − mean) over the race's standard deviation of rewards. ``reward_model`` is the name of the
    model that gave them; earlier releases did not store it.
    """

    key: str
    record_id: str
    time_ms: int
    messages: list[JsonObject]
    winner: ScoredAnswer
    losers: tuple[ScoredAnswer, ...]
    margin_sd: float
    adapter: str | None
    reward_model: str | None = None


@dataclass(frozen=True, slots=True)
class HeldOutPrompt:
    """A conversation that measures and never trains. ``key`` is ``split.conversation_key(messages)``."""

    key: str
    messages: list[JsonObject]
