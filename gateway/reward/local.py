"""Score with a model in this process. One thread owns the model, a second one its tokenizer.

The tokenizer's thread encodes the next batch while this one is scored, and keeps long prompts (milliseconds each) off
the event loop. The model's thread imports torch, so a gateway without a local model never does.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.errors import RewardError, RewardTimeout, RewardUnavailable
from gateway.reward.availability import Availability
from gateway.reward.batcher import MAX_QUEUE, Batcher
from gateway.reward.loading import IMPORTS, Loading, import_error
from gateway.settings import RewardSettings
from gateway.types import BatchStats, Message, Readiness, Score

if TYPE_CHECKING:
    from gateway.reward.model import EncodedPair, RewardModel

# Cost of starting a batch, in tokens: kernel launches on a GPU, almost nothing on a CPU. Measured by simulation (20 ms
# and 1.5 µs for each token against 2 ms and 60 µs): with 256 a GPU gives 392 answers a second at 32 races, with 4096
# it gives 592; a CPU gives the same with either, and its shorter answers wait less with a small value.
LAUNCH_TOKENS = {"cuda": 4096, "cpu": 128}
MAX_WAIT_MS = 2.0  # that an answer waits for others to share its batch
_SHARE_OF_TIMEOUT = 0.9  # a reward cancelled after this share of the time that a race waits for it was too slow


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: Sequence[Message]
    answer: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A score and the number of tokens that the model read."""

    score: Score
    tokens: int


_PROBE = Conversation([{"role": "user", "content": "What is two and two?"}], "Four.")


class LocalScorer:
    """Scores with a model in this process, batched over all requests. Loading starts with ``start``, or on first use.

    ``load`` runs in the model's thread.
    """

    def __init__(
        self,
        settings: RewardSettings,
        *,
        observe: Callable[[BatchStats], None] | None = None,
        load: Callable[[], RewardModel] | None = None,
    ) -> None:
        self._settings = settings
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="reward-model")
        self._tokenizer_thread = ThreadPoolExecutor(1, thread_name_prefix="reward-tokenizer")
        self._loading = Loading["RewardModel"](
            lambda: self._prepared(load or self._load), self._model_thread, what="reward model"
        )
        self._batcher = Batcher["EncodedPair", float](
            self._run,
            max_batch_tokens=settings.max_batch_tokens,
            max_wait_ms=MAX_WAIT_MS,
            max_queue=MAX_QUEUE,
            launch_tokens=LAUNCH_TOKENS["cpu"],
            observe=observe,
        )
        self._availability = Availability(self._probe, name=settings.model)

    @property
    def available(self) -> bool:
        """True if the model is loaded and has not just failed repeatedly."""
        return self._loading.value is not None and not self._availability.away

    @property
    def n_away(self) -> int:
        """1 while the model is not asked because it failed repeatedly."""
        return int(self._availability.away)

    @property
    def name(self) -> str:
        """The model's name; until it is loaded, the name in the settings."""
        return self._settings.model if (model := self._loading.value) is None else model.name

    @property
    def waiting(self) -> int:
        return self._batcher.waiting

    def start(self) -> None:
        self._loading.start()

    async def loaded(self) -> RewardModel:
        """Return the model once it is loaded.

        Raises:
            SettingsError: It cannot be loaded.
        """
        return await asyncio.shield(asyncio.wrap_future(self._loading.start()))

    def model(self) -> RewardModel:
        """Return the model.

        Raises:
            RewardError: It is not loaded, or was released.
        """
        if self._batcher.closed:
            raise RewardError("scoring has stopped")
        self._loading.start()
        if (model := self._loading.value) is None:
            state = "is still loading" if self._loading.error is None else "could not be loaded"
            raise RewardError(f"the reward model {state}")
        return model

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        """Score ``answer`` as the assistant's next turn after ``messages``. Cancelling drops the work.

        Raises:
            RewardUnavailable: The model failed repeatedly; it is not asked.
            RewardError: The model is not loaded, the queue is full, or the reward is not a number.
        """
        if self._availability.away:
            raise RewardUnavailable("the reward model failed repeatedly")
        began_s = asyncio.get_running_loop().time()
        try:
            (result,) = await self.score_many([Conversation(messages, answer)])
        except asyncio.CancelledError:
            if asyncio.get_running_loop().time() - began_s >= _SHARE_OF_TIMEOUT * self._settings.timeout_s:
                self._availability.failed(RewardTimeout("the reward model was too slow"))
            raise
        if isinstance(result, RewardError):
            raise result
        return result.score

    async def score_many(self, items: Sequence[Conversation | str]) -> list[Scored | RewardError]:
        """Score several conversations, or texts that are rendered already. An item's failure is its own result.

        Raises:
            RewardError: The model is not loaded.
            QueueFull: The queue has no room for all of them; none is scored.
        """
        model = self.model()
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(self._tokenizer_thread, _encode_all, model, items)
        replies: list[asyncio.Future[float]] = []
        try:
            for pair in encoded:
                if not isinstance(pair, RewardError):
                    replies.append(self._batcher.put(pair, pair.length))
            rewards = iter(await asyncio.gather(*replies, return_exceptions=True))
        finally:
            for reply in replies:
                reply.cancel()
        return [pair if isinstance(pair, RewardError) else _scored(pair, next(rewards)) for pair in encoded]

    async def readiness(self) -> Readiness:
        if not self._batcher.closed:
            self._loading.start()
        if (error := self._loading.error) is not None:
            return Readiness(False, f"the reward model could not be loaded: {error}", {"model": self._settings.model})
        if (model := self._loading.value) is None:
            return Readiness(False, "the reward model is loading", {"model": self._settings.model})
        if self._availability.away:
            return Readiness(False, f"gives no rewards: {self._availability.reason}", {"model": model.name})
        facts = {"model": model.name, "device": model.device, "dtype": model.dtype, "waiting": self._batcher.waiting}
        return Readiness(True, facts=facts)

    async def aclose(self) -> None:
        """Stop scoring and release the model's threads; a batch in the model ends first."""
        await self._availability.aclose()
        await self._batcher.aclose()
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
        self._model_thread.shutdown(wait=False, cancel_futures=True)

    def _prepared(self, load: Callable[[], RewardModel]) -> RewardModel:
        """Load the model, and set the cost of starting a batch on its device."""
        model = load()
        if model.device.startswith("cuda"):
            self._batcher.launch_tokens = LAUNCH_TOKENS["cuda"]
        return model

    def _load(self) -> RewardModel:
        settings = self._settings
        try:
            with IMPORTS:
                from gateway.reward.model import RewardModel
        except ImportError as error:
            raise import_error(error, "a reward model in this process") from error
        return RewardModel.load(
            settings.model,
            adapter=settings.adapter,
            device=settings.device,
            dtype=settings.dtype,
            max_length_tokens=settings.max_length_tokens,
        )

    async def _run(self, batch: Sequence[EncodedPair]) -> list[float | RewardError]:
        loop = asyncio.get_running_loop()
        try:
            rewards = await loop.run_in_executor(self._model_thread, self.model().score, batch)
        except RewardError as error:
            self._availability.failed(error)
            raise
        if not any(map(math.isfinite, rewards)) and not await self._scores_at_all():
            self._availability.failed(RewardError("the reward model gives no numbers"))
        else:
            self._availability.succeeded()
        return [r if math.isfinite(r) else RewardError("the reward model gave no number") for r in rewards]

    async def _scores_at_all(self) -> bool:
        """Return True if a fixed answer gets a number: then the fault is the other answers', not the model's."""
        model = self.model()

        def reward() -> float:
            return model.score([model.encode(_PROBE.messages, _PROBE.answer)])[0]

        return math.isfinite(await asyncio.get_running_loop().run_in_executor(self._model_thread, reward))

    async def _probe(self) -> None:
        """Score a fixed answer: it succeeds if the model works again."""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                (result,) = await self.score_many([_PROBE])
        except TimeoutError as error:
            raise RewardTimeout("the reward model was too slow") from error
        if isinstance(result, RewardError):
            raise result


def _encode_all(model: RewardModel, items: Sequence[Conversation | str]) -> list[EncodedPair | RewardError]:
    return [_encode(model, item) for item in items]


def _encode(model: RewardModel, item: Conversation | str) -> EncodedPair | RewardError:
    try:
        return model.encode_text(item) if isinstance(item, str) else model.encode(item.messages, item.answer)
    except RewardError as error:
        return error


def _scored(pair: EncodedPair, reward: float | BaseException) -> Scored | RewardError:
    if isinstance(reward, RewardError):
        return reward
    if isinstance(reward, BaseException):
        raise reward
    return Scored(Score(reward, pair.prompt_truncated), pair.length)
