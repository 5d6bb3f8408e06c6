"""What training learns from: one race whose winner may teach, with the answers it beat."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.types import JsonObject


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One finished draw of a race, with its reward."""

    text: str
    reward: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Example:
    """One curated race: what the model is taught to say after ``messages``, and what it said less well.

    ``key`` is ``split.conversation_key(messages)``. ``losers`` ascend by reward, none equals the winner's text.
    ``margin_sd`` is (winner − mean) over the race's standard deviation of rewards. ``reward_model`` is the name of the
    model that gave them; earlier releases did not keep it.
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
    """One conversation that measures and never trains. ``key`` is ``split.conversation_key(messages)``."""

    key: str
    messages: list[JsonObject]
