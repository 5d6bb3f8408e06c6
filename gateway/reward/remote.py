"""Rewards from a server that speaks /classify: this project's own, vLLM or SGLang.

Answers that finish together travel together; several calls may be under way. What a server gives is checked before
it is believed: a reward that was squashed to a probability, or that belongs to another answer, is worse than none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import RewardError, RewardRefused, RewardUnavailable
from gateway.reward import wire
from gateway.reward.batcher import MAX_QUEUE, Batcher, BatchStats
from gateway.reward.loading import IMPORTS, Loading, import_error
from gateway.reward.servers import RewardServers
from gateway.settings import RewardSettings
from gateway.types import Message, Readiness, Score

if TYPE_CHECKING:
    from gateway.reward.rendering import ChatRenderer

CALLS_IN_FLIGHT = 4
_BYTES_PER_TOKEN = 4  # where no tokenizer counts


@dataclass(frozen=True, slots=True)
class _Item:
    """One answer as it is sent, about how many tokens it has, and whether it was cut here."""

    encoded: bytes
    tokens: int
    truncated: bool


class RemoteScorer:
    """Scores with a reward server. Connections are opened on first use, inside the running loop.

    Args:
        settings: Where the server is and how conversations are rendered for it.
        observe: Told about each call.
    """

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
            max_wait_ms=0,  # the server waits for company; here what is ready in one turn of the loop goes together
            max_queue=MAX_QUEUE,
            concurrency=CALLS_IN_FLIGHT * len(settings.urls),
            launch_tokens=settings.max_batch_tokens,  # padding costs nothing on the wire, calls do
            abort_unwanted=True,
            observe=observe,
        )

    @property
    def name(self) -> str:
        """The server's model; until it was asked, the name it is asked for by."""
        return self._settings.url_model or self._settings.url if (known := self._servers.known) is None else known.model

    @property
    def available(self) -> bool:
        """Whether rewards can be expected now: the tokenizer is loaded, and a server has not just failed repeatedly."""
        if self._renderer is not None and self._renderer.value is None:
            return False
        return self._servers.available

    @property
    def n_away(self) -> int:
        """How many servers are passed over."""
        return self._servers.n_away

    @property
    def waiting(self) -> int:
        """Answers in the queue."""
        return self._batcher.waiting

    def start(self) -> None:
        """Begin to load the tokenizer, where there is one."""
        if self._renderer is not None:
            self._renderer.start()

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        """Reward of ``answer`` as the assistant's next turn after ``messages``. Cancelling drops the work.

        Raises:
            RewardUnavailable: No server has answered lately; none is asked.
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
        """Ready when a server answers, its rewards are raw, and the tokenizer (if any) is loaded."""
        try:
            self._loaded_renderer()
        except RewardError as error:
            return Readiness(False, error.message, {"url": self._settings.url})
        return await self._servers.readiness()

    async def aclose(self) -> None:
        """Stop scoring and close the connections."""
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
        """Return the renderer; None where conversations are sent whole.

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
