"""Identity of the reward model, by which the guard notices that its weights were replaced during a trial."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import structlog

from distill.evaluation.reward_probes import rewards_of_probes, same_rewards, wait_until_ready
from distill.training.base_files import base_digest
from gateway.errors import GatewayError
from gateway.reward.build import build_scorer
from gateway.settings import RewardSettings
from gateway.types import Scorer

OBSERVE_EVERY_S = 60.0
_READY_TIMEOUT_S = 10.0

log = structlog.get_logger()


class RewardIdentity:
    """Observes the identity of the gateway's reward model, once a minute at most.

    A server is asked for the rewards of the probes. A model in the gateways' own processes would have to be loaded
    here, too, so its files are hashed instead.

    Args:
        settings: The gateway's reward model.
    """

    def __init__(self, settings: RewardSettings) -> None:
        self._settings = settings
        self._scorer: Scorer | None = None
        self._next_s = 0.0

    async def observe(self) -> Any:
        """Return the identity, which JSON can hold; None if it is not available or was observed within the minute."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_s:
            return None
        self._next_s = loop.time() + OBSERVE_EVERY_S
        if not self._settings.url:
            return await asyncio.to_thread(_files, self._settings)
        try:
            if self._scorer is None:
                self._scorer = build_scorer(self._settings)
            if self._scorer is None:
                return None
            await wait_until_ready(self._scorer, _READY_TIMEOUT_S)
            return await rewards_of_probes(self._scorer)
        except GatewayError as error:
            log.info("reward_probes_not_answered", error=error.message)
            return None

    async def aclose(self) -> None:
        if self._scorer is not None:
            await self._scorer.aclose()


def same_identity(one: Any, other: Any) -> bool:
    """Compare two observations; a changed configuration counts as another reward model."""
    if isinstance(one, list) and isinstance(other, list):
        return same_rewards(one, other)
    return bool(one == other)


def _files(settings: RewardSettings) -> str | None:
    """Return the digest of a local reward model's files; None if no model is configured."""
    if not settings.model:
        return None
    parts = [base_digest(settings.model)]
    if settings.adapter is not None:
        parts.append(base_digest(str(Path(settings.adapter))))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
