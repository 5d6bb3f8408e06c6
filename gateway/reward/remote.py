"""Rewards from a server that speaks /classify: this project's own, vLLM or SGLang.

Answers that finish in the same turn of the event loop are sent in one call; several calls may be in flight. Rewards
are checked before they are used: one that was squashed to a probability, or belongs to another answer, is worse than
none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import RewardError, RewardRefused, RewardUnavailable
from gateway.reward import wire
from gateway.reward.batcher import MAX_QUEUE, Batcher
from gateway.reward.loading import IMPORTS, Loading, import_error
from gateway.reward.servers import RewardServers
from gateway.settings import RewardSettings
from gateway.types import BatchStats, Message, Readiness, Score

if TYPE_CHECKING:
    from gateway.reward.rendering import ChatRenderer

CALLS_IN_FLIGHT = 4
_BYTES_PER_TOKEN = 4  # an estimate, without a tokenizer


@dataclass(frozen=True, slots=True)
class _Item:
    """An answer as it is sent, and its approximate number of tokens. ``truncated``: it was cut here."""

    encoded: bytes
    tokens: int
    truncated: bool


class RemoteScorer:
    """Scores with reward servers. Connections are opened on first use, inside the running loop."""

    def __init__(self, settings: RewardSettings, *, observe: Callable[[BatchStats], None] | None = None) -> None:
        self._settings = settings
        self._servers = RewardServers(settings)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-renderer")
        self._renderer: Loading[ChatRenderer] | None = None
        if settings.tokenizer:
            self._renderer = Loading(lambda: _load_renderer(settings), self._thread, what="reward tokenizer")
        self._batcher = Batcher[_Item, Score](
            self._run,
            max_batch_tokens=settings.max_batch_tokens,
            max_wait_ms=0,  # the server waits for more answers; here those of one turn of the loop are one call
            max_queue=MAX_QUEUE,
            concurrency=CALLS_IN_FLIGHT * len(settings.urls),
            launch_tokens=settings.max_batch_tokens,  # padding is not sent, and calls cost
            abort_unwanted=True,
            observe=observe,
        )

    @property
    def name(self) -> str:
        """The server's model; until the server was asked, the name in the settings."""
        return self._settings.url_model or self._settings.url if (known := self._servers.known) is None else known.model

    @property
    def available(self) -> bool:
        """True if the tokenizer is loaded and a server has not just failed repeatedly."""
        if self._renderer is not None and self._renderer.value is None:
            return False
        return self._servers.available

    @property
    def n_away(self) -> int:
        return self._servers.n_away

    def start(self) -> None:
        if self._renderer is not None:
            self._renderer.start()

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        """Score ``answer`` as the assistant's next turn after ``messages``. Cancelling drops the work.

        Raises:
            RewardUnavailable: Every server failed repeatedly; none is asked.
            RewardTimeout: The server was too slow.
            RewardRefused: This answer cannot be scored.
            RewardError: The server cannot be reached, or gives no usable reward.
        """
        if self._batcher.closed:
            raise RewardError("scoring has stopped")
        if not self._servers.available:
            raise RewardUnavailable("no reward server answers now")
        await self._servers.meet()
        item = await self._item(messages, answer)
        return await self._batcher.put(item, item.tokens)

    async def readiness(self) -> Readiness:
        """Return ready if a server answers, its rewards are raw, and the tokenizer (if any) is loaded."""
        try:
            self._loaded_renderer()
        except RewardError as error:
            return Readiness(False, error.message, {"url": self._settings.url})
        return await self._servers.readiness()

    async def aclose(self) -> None:
        await self._batcher.aclose()
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._servers.aclose()

    async def _item(self, messages: Sequence[Message], answer: str) -> _Item:
        renderer = self._loaded_renderer()
        if renderer is None:
            encoded = wire.conversation(messages, answer)
            return _Item(encoded, len(encoded) // _BYTES_PER_TOKEN, False)
        limit = min(
            self._settings.max_length_tokens, self._servers.max_length_tokens or self._settings.max_length_tokens
        )
        rendered = await asyncio.get_running_loop().run_in_executor(
            self._thread, renderer.render, messages, answer, limit
        )
        if not rendered.text.strip():
            raise RewardRefused("the reward model's chat template leaves nothing of this answer")
        return _Item(wire.text(rendered.text), rendered.tokens, rendered.truncated)

    def _loaded_renderer(self) -> ChatRenderer | None:
        """Return the renderer; None if conversations are sent whole.

        Raises:
            RewardError: It is loading, or could not be loaded.
        """
        if self._renderer is None:
            return None
        if not self._batcher.closed:
            self._renderer.start()
        if (error := self._renderer.error) is not None:
            raise RewardError(f"the reward tokenizer could not be loaded: {error}")
        if (renderer := self._renderer.value) is None:
            raise RewardError("the reward tokenizer is loading")
        return renderer

    async def _run(self, batch: Sequence[_Item]) -> list[Score | RewardError]:
        scores = await self._servers.classify([item.encoded for item in batch])
        return [
            Score(score.reward, True) if item.truncated and isinstance(score, Score) else score
            for item, score in zip(batch, scores, strict=True)
        ]


def _load_renderer(settings: RewardSettings) -> ChatRenderer:
    try:
        with IMPORTS:
            from gateway.reward.rendering import ChatRenderer
    except ImportError as error:
        raise import_error(error, "rendering for a remote reward server") from error
    return ChatRenderer(settings.tokenizer)
