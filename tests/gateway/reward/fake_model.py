"""A model for what real weights cannot show: held batches, rewards that are no numbers, refused conversations."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from gateway.errors import RewardError
from gateway.reward.model import EncodedPair, RewardModel
from gateway.types import Message


class FakeModel(RewardModel):
    """Its reward is the text's length, and no number at 13; it refuses a prompt of "refuse me".

    Batches are held while ``gate`` is shut; ``begun`` is set when one has begun.
    """

    device = "cpu"
    dtype = "float32"
    reads_text = True

    def __init__(self, device: str = "cpu", *, reads_text: bool = True) -> None:
        self.name = "fake"
        self.max_length_tokens = 100
        self.device = device
        self.reads_text = reads_text
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.batches: list[int] = []
        self.threads: set[str] = set()

    def encode(self, messages: Sequence[Message], answer: str) -> EncodedPair:
        self.threads.add(threading.current_thread().name)
        if messages and messages[-1]["content"] == "refuse me":
            raise RewardError("the reward model's chat template refuses this conversation")
        return EncodedPair([1] * len(answer), prompt_truncated=len(messages) > 2)

    def encode_text(self, text: str) -> EncodedPair:
        return EncodedPair([1] * len(text))

    def score(self, batch: Sequence[EncodedPair]) -> list[float]:
        self.threads.add(threading.current_thread().name)
        self.begun.set()
        assert self.gate.wait(30)
        self.batches.append(len(batch))
        if any(pair.length == 99 for pair in batch):
            raise RewardError("the reward model failed on cuda:0: OutOfMemoryError")
        return [math.nan if pair.length == 13 else float(pair.length) for pair in batch]
