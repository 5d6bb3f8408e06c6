"""Build the scorer of the settings. Nothing here imports torch; a local model's own thread does."""

from __future__ import annotations

from collections.abc import Callable

from gateway.reward.local import LocalScorer
from gateway.reward.remote import RemoteScorer
from gateway.settings import RewardSettings
from gateway.types import BatchStats, Scorer


def build_scorer(settings: RewardSettings, *, observe: Callable[[BatchStats], None] | None = None) -> Scorer | None:
    """Return a model in this process or a client of servers; None if neither is configured."""
    if settings.model:
        return LocalScorer(settings, observe=observe)
    if settings.url:
        return RemoteScorer(settings, observe=observe)
    return None
