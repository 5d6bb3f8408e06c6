"""A reward model in this process: texts in, raw rewards out. Blocking; one thread owns it (``gateway.reward.local``).

Any one-label sequence classifier serves. If its tokenizer has a chat template, the whole conversation is rendered with
the answer as the assistant's turn; if not, prompt and answer are encoded as a pair, as BERT models were trained to
read two texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import structlog
import torch

from gateway.errors import RewardError
from gateway.reward.chat_text import ChatText, printable
from gateway.reward.features import RELEVANCE, weighted_sum
from gateway.reward.relevance import Relevance
from gateway.reward.weights import (
    Adapter,
    choose_device,
    choose_dtype,
    keep_head_in_float32,
    load_base,
    merge_adapter,
    quiet_transformers,
)
from gateway.types import Message

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A conversation and one answer to it as token ids; ``prompt_truncated`` if either was cut to fit.

    ``feature_sum`` is the weighted sum of text features, which is added to the reward.
    """

    input_ids: list[int]
    token_type_ids: list[int] | None = None
    prompt_truncated: bool = False
    feature_sum: float = 0.0

    @property
    def length(self) -> int:
        """Tokens, before padding."""
        return len(self.input_ids)


class RewardModel:
    """A one-label sequence classifier whose raw logit is the reward; an adapter may add weighted text features."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        max_length_tokens: int,
        feature_weights: Mapping[str, float] | None = None,
        relevance: Relevance | None = None,
    ) -> None:
        self.name = name
        self._feature_weights = feature_weights or {}
        self._relevance = relevance
        self.max_length_tokens = min(max_length_tokens, _position_limit(model, tokenizer))
        self._model = model
        self._tokenizer = tokenizer
        # A tokenizer.json may have padding and truncation of its own (MiniLM's has: always 128 tokens).
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        self._pad_id = _pad_token_id(model, tokenizer)
        self._chat = ChatText(tokenizer) if tokenizer.chat_template else None
        self._typed = "token_type_ids" in tokenizer.model_input_names

    @classmethod
    def load(
        cls,
        model: str,
        *,
        adapter: Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_length_tokens: int = 4096,
    ) -> Self:
        """Load weights (safetensors only, never a repository's own code) and put them on the device.

        Args:
            model: Folder or hub id of a sequence classifier with one label.
            adapter: PEFT adapter folder, merged into the weights. It must bring the head if the model has none, and
                may bring weights of text features (``gateway.reward.features``) and a name.
            device: auto (CUDA if there is one), cpu, cuda or cuda:N.
            dtype: auto (bfloat16 on CUDA, float32 on the CPU), float32 or bfloat16.
            max_length_tokens: Longest input; the model's own limit holds too.

        Raises:
            SettingsError: A path is missing, the model has several labels or no trained head, its weights are not
                safetensors, the adapter does not fit, or the device does not exist.
        """
        target = choose_device(device)
        weights_dtype = choose_dtype(dtype, target)
        name, relevance = Path(model).name, None
        merged = Adapter.read(adapter) if adapter is not None else None
        with quiet_transformers():
            # Merged in float32: bfloat16 would round LoRA's small updates away.
            tokenizer, classifier = load_base(model, torch.float32 if merged is not None else weights_dtype, merged)
            if merged is not None:
                name = merged.name or f"{name}+{merged.folder.resolve().name}"
                classifier = merge_adapter(classifier, merged, model)
                if weight := merged.feature_weights.get(RELEVANCE, 0.0):
                    relevance = Relevance.load(model, weight, tokenizer, device=target, dtype=weights_dtype)
        classifier = classifier.to(device=target, dtype=weights_dtype)
        keep_head_in_float32(classifier)
        loaded = cls(
            classifier.eval(),
            tokenizer,
            name=name,
            max_length_tokens=max_length_tokens,
            feature_weights=merged.feature_weights if merged is not None else None,
            relevance=relevance,
        )
        _log.info("reward_model_loaded", model=loaded.name, device=loaded.device, dtype=loaded.dtype)
        return loaded

    @property
    def module(self) -> Any:
        return self._model

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def device(self) -> str:
        return str(self._model.device)

    @property
    def dtype(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    def encode(self, messages: Sequence[Message], answer: str) -> EncodedPair:
        """Return the token ids of ``answer`` as the assistant's turn after ``messages``.

        An over-long input loses the beginning of its prompt; an answer that alone is too long loses its own end.

        Raises:
            RewardError: The chat template refuses the conversation.
        """
        answer = printable(answer)
        pair = (
            self._encode_pair(messages, answer)
            if self._chat is None
            else self._encode_chat(self._chat, messages, answer)
        )
        if not self._feature_weights:
            return pair
        return replace(pair, feature_sum=weighted_sum(self._feature_weights, prompt_text(messages), answer))

    @property
    def reads_text(self) -> bool:
        """True if ``encode_text`` can be used: a template joins both texts, and no feature needs them apart."""
        return self._chat is not None and not self._feature_weights

    def encode_text(self, text: str) -> EncodedPair:
        """Return the token ids of a conversation that the model's chat template rendered elsewhere.

        An over-long text loses its beginning.
        """
        ids = cast("list[int]", self._tokenizer(printable(text), verbose=False)["input_ids"])
        if len(ids) <= self.max_length_tokens:
            return EncodedPair(ids)
        first = ids[:1] if ids[0] == self._tokenizer.bos_token_id else []
        return EncodedPair([*first, *ids[len(ids) - self.max_length_tokens + len(first) :]], prompt_truncated=True)

    def score(self, batch: Sequence[EncodedPair]) -> list[float]:
        """Return rewards in the batch's order; a text's reward does not depend on its neighbours.

        Raises:
            RewardError: The device failed (out of memory, a lost GPU).
        """
        if not batch:
            return []
        try:
            with torch.inference_mode():
                return cast("list[float]", self.logits(batch).tolist())
        except (RuntimeError, IndexError) as error:
            raise RewardError(f"the reward model failed on {self.device}: {type(error).__name__}") from error

    def logits(self, batch: Sequence[EncodedPair]) -> torch.Tensor:
        """Return the rewards of a batch of at least one, float32 (B,) on the device, differentiable for training."""
        width = max(pair.length for pair in batch)
        device = self._model.device
        pad_id = self._pad_id if self._pad_id is not None else _unused_pad_id(batch)
        self._model.config.pad_token_id = pad_id
        # B = pairs in the batch, T = tokens of its longest; padded on the right, int64.
        ids_BT = torch.full((len(batch), width), pad_id, dtype=torch.long)
        mask_BT = torch.zeros((len(batch), width), dtype=torch.long)
        types_BT = torch.zeros((len(batch), width), dtype=torch.long)
        for row, pair in enumerate(batch):
            ids_BT[row, : pair.length] = torch.tensor(pair.input_ids)
            mask_BT[row, : pair.length] = 1
            if pair.token_type_ids is not None:
                types_BT[row, : pair.length] = torch.tensor(pair.token_type_ids)
        inputs = {"input_ids": ids_BT.to(device), "attention_mask": mask_BT.to(device)}
        if self._typed:
            inputs["token_type_ids"] = types_BT.to(device)
        logits_B1: torch.Tensor = self._model(**inputs).logits
        rewards_B = logits_B1.float().squeeze(-1)
        if self._feature_weights:
            rewards_B = rewards_B + torch.tensor([pair.feature_sum for pair in batch], device=device)
        if self._relevance is None:
            return rewards_B
        return rewards_B + self._relevance(
            [pair.input_ids for pair in batch], [pair.token_type_ids or [] for pair in batch]
        )

    def _encode_pair(self, messages: Sequence[Message], answer: str) -> EncodedPair:
        backend = self._tokenizer.backend_tokenizer
        prompt_part = backend.encode(prompt_text(messages), add_special_tokens=False)
        answer_part = backend.encode(answer, add_special_tokens=False)
        room = self.max_length_tokens - backend.num_special_tokens_to_add(is_pair=True)
        truncated = len(prompt_part) + len(answer_part) > room
        if truncated:
            answer_part.truncate(room, direction="right")
            prompt_part.truncate(room - len(answer_part), direction="left")
        both = backend.post_process(prompt_part, answer_part)
        return EncodedPair(both.ids, both.type_ids if self._typed else None, truncated)

    def _encode_chat(self, chat: ChatText, messages: Sequence[Message], answer: str) -> EncodedPair:
        text = chat.render(messages, answer)
        ids = chat.ids(text)
        if len(ids) <= self.max_length_tokens:
            return EncodedPair(ids)
        kept = chat.kept(messages, text, chat.spans(text), self.max_length_tokens)
        return EncodedPair([ids[place] for place in kept], prompt_truncated=True)


def prompt_text(messages: Sequence[Message]) -> str:
    """Return the conversation as one text, for tokenizers without a chat template; a single message is unchanged."""
    if len(messages) == 1:
        return printable(messages[0]["content"] or "")
    return "\n".join(f"{message['role']}: {printable(message['content'] or '')}" for message in messages)


def _position_limit(model: Any, tokenizer: Any) -> int:
    """Return the longest input that the model can read, in tokens."""
    limit: int = tokenizer.model_max_length  # a huge number if the tokenizer has none
    return min(int(getattr(model.config, "max_position_embeddings", limit)), limit)


def _pad_token_id(model: Any, tokenizer: Any) -> int | None:
    """Return the padding token, the model's own first: a decoder classifier finds its last token by it."""
    configured = model.config.pad_token_id
    return int(configured) if configured is not None else cast("int | None", tokenizer.pad_token_id)


def _unused_pad_id(batch: Sequence[EncodedPair]) -> int:
    """Return a token that no sequence ends with. Padding with EOS, as usual, would hide each answer's real EOS."""
    last = {pair.input_ids[-1] for pair in batch}
    return next(token for token in range(len(last) + 1) if token not in last)
