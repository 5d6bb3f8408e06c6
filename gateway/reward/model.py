"""A reward model in this process: texts in, raw rewards out. Blocking; one thread owns it (``gateway.reward.batcher``).

Any one-label sequence classifier serves. Where its tokenizer has a chat template, the whole conversation is rendered
with the answer as the assistant's turn; where it has none, prompt and answer are encoded as a pair, as BERT's kin
were trained to read two texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import structlog
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gateway.errors import RewardError, SettingsError
from gateway.reward.chat_text import ChatText, printable
from gateway.reward.relevance import Relevance
from gateway.reward.signals import RELEVANCE, parse_weights, weighted
from gateway.types import Message

ADAPTER_FILE = "adapter_model.safetensors"
# What an adapter says of itself in its safetensors header, where the weights' own digest covers it:
NAME_KEY = "name"  # what the model is called with it
SIGNALS_KEY = "signals"  # how much each text signal counts, as JSON (gateway.reward.signals)
HEADS = ("score", "classifier")  # what decoder and encoder classifiers call their last layer
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A conversation and one answer to it as token ids; ``prompt_truncated`` when either had to be cut to fit.

    ``signals`` is what the text itself adds to the reward (``gateway.reward.signals``).
    """

    input_ids: list[int]
    token_type_ids: list[int] | None = None
    prompt_truncated: bool = False
    signals: float = 0.0

    @property
    def length(self) -> int:
        """Tokens, before padding."""
        return len(self.input_ids)


class RewardModel:
    """A one-label sequence classifier whose raw logit is the reward; an adapter may add signals of the text to it."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        max_length_tokens: int,
        signals: Mapping[str, float] | None = None,
        relevance: Relevance | None = None,
    ) -> None:
        self.name = name
        self._signals = signals or {}
        self._relevance = relevance
        self.max_length_tokens = min(max_length_tokens, _position_limit(model, tokenizer))
        self._model = model
        self._tokenizer = tokenizer
        # A tokenizer.json may carry padding and truncation of its own (MiniLM's does: always 128 tokens).
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
            adapter: PEFT adapter folder, merged into the weights; it must bring the head where the model has none,
                and may say how much signals of the text count (``gateway.reward.signals``) and what it is called.
            device: auto (CUDA where there is one), cpu, cuda or cuda:N.
            dtype: auto (bfloat16 on CUDA, float32 on the CPU), float32 or bfloat16.
            max_length_tokens: Longest input; the model's own limit holds too.

        Raises:
            SettingsError: A path is missing, the model has several labels or no trained head, its weights are not
                safetensors, the adapter does not fit, or the device does not exist.
        """
        target = _choose_device(device)
        weights_dtype = DTYPES[_choose_dtype(dtype, target)]
        with quiet_transformers():
            # Merged in float32: bfloat16 would round LoRA's small updates away.
            tokenizer, classifier = _load_base(model, torch.float32 if adapter is not None else weights_dtype, adapter)
            name, signals, relevance = Path(model).name, None, None
            if adapter is not None:
                said = _adapter_header(adapter)
                name = said.get(NAME_KEY) or f"{name}+{adapter.resolve().name}"
                signals = parse_weights(said.get(SIGNALS_KEY, "{}"))
                classifier = _merge_adapter(classifier, adapter, model)
                if weight := signals.get(RELEVANCE, 0.0):
                    relevance = Relevance.load(model, weight, tokenizer, device=target, dtype=weights_dtype)
        classifier = classifier.to(device=target, dtype=weights_dtype)
        _keep_head_in_float32(classifier)
        loaded = cls(
            classifier.eval(),
            tokenizer,
            name=name,
            max_length_tokens=max_length_tokens,
            signals=signals,
            relevance=relevance,
        )
        _log.info("reward_model_loaded", model=loaded.name, device=loaded.device, dtype=loaded.dtype)
        return loaded

    @property
    def module(self) -> Any:
        """The torch module itself, for training."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The backbone's own tokenizer."""
        return self._tokenizer

    @property
    def device(self) -> str:
        """Where the weights are, as torch writes it."""
        return str(self._model.device)

    @property
    def dtype(self) -> str:
        """float32 or bfloat16."""
        return str(self._model.dtype).removeprefix("torch.")

    def encode(self, messages: Sequence[Message], answer: str) -> EncodedPair:
        """Token ids of ``answer`` as the assistant's turn after ``messages``.

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
        return replace(pair, signals=weighted(self._signals, prompt_text(messages), answer)) if self._signals else pair

    @property
    def reads_text(self) -> bool:
        """Whether ``encode_text`` makes sense: a template puts both texts into one, and no signal needs them apart."""
        return self._chat is not None and not self._signals

    def encode_text(self, text: str) -> EncodedPair:
        """Token ids of a conversation that the model's chat template rendered elsewhere, as ``ChatText.render`` does.

        An over-long text loses its beginning.
        """
        ids = cast("list[int]", self._tokenizer(printable(text), verbose=False)["input_ids"])
        if len(ids) <= self.max_length_tokens:
            return EncodedPair(ids)
        first = ids[:1] if ids[0] == self._tokenizer.bos_token_id else []
        return EncodedPair([*first, *ids[len(ids) - self.max_length_tokens + len(first) :]], prompt_truncated=True)

    def score(self, batch: Sequence[EncodedPair]) -> list[float]:
        """Rewards in the batch's order; a text's reward does not depend on its neighbours.

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
        """Rewards of a batch of at least one, as a float32 tensor (B,) on the device: what training differentiates."""
        width = max(pair.length for pair in batch)
        device = self._model.device
        pad_id = self._pad_id if self._pad_id is not None else _token_that_ends_none(batch)
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
        if self._signals:
            rewards_B = rewards_B + torch.tensor([pair.signals for pair in batch], device=device)
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
    """The conversation as one text, for tokenizers without a chat template; a lone message stands as it is."""
    if len(messages) == 1:
        return printable(messages[0]["content"] or "")
    return "\n".join(f"{message['role']}: {printable(message['content'] or '')}" for message in messages)


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"reward device {device!r} is not a device") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"reward device {device!r} does not exist here")
    return target


def _choose_dtype(dtype: str, device: torch.device) -> str:
    if dtype == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if dtype not in DTYPES:
        raise SettingsError(f"reward dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    return dtype


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without progress bars and load reports on stderr: what they would tell is checked here and raised."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _load_base(model: str, dtype: torch.dtype, adapter: Path | None) -> tuple[Any, Any]:
    """Tokenizer and classifier; a head that neither the weights nor the adapter bring would judge at random."""
    folder = Path(model)
    if not folder.is_dir() and (folder.is_absolute() or model.startswith(".") or model.count("/") > 1):
        raise SettingsError(f"reward model folder {model} does not exist")
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": folder.is_dir()}
    try:
        config = AutoConfig.from_pretrained(model, **options)
        labelled = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
        if labelled and config.num_labels != 1:
            raise SettingsError(f"reward model {model} has {config.num_labels} labels; a reward model has one")
        config.num_labels = 1
        tokenizer = AutoTokenizer.from_pretrained(model, **options)
        if not tokenizer.is_fast:
            raise SettingsError(f"reward model {model} has no fast tokenizer (tokenizer.json)")
        classifier, report = AutoModelForSequenceClassification.from_pretrained(
            model,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SettingsError(f"reward model {model} cannot be loaded: {error}") from error
    untrained = set(report["missing_keys"]) - _adapter_weights(adapter)
    if untrained:
        raise SettingsError(f"reward model {model} has no trained weights for {', '.join(sorted(untrained))}")
    return tokenizer, classifier


def _adapter_weights(adapter: Path | None) -> set[str]:
    """Names of the whole weights (the head) that the adapter brings, as the base model calls them."""
    if adapter is None:
        return set()
    try:
        with safe_open(adapter / ADAPTER_FILE, framework="pt") as weights:
            return {name.removeprefix("base_model.model.") for name in weights.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"reward adapter {adapter} has no readable {ADAPTER_FILE}") from error


def _adapter_header(adapter: Path) -> dict[str, str]:
    """What the adapter says of itself in the header of its weights."""
    try:
        with safe_open(adapter / ADAPTER_FILE, framework="pt") as weights:
            return weights.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise SettingsError(f"reward adapter {adapter} has no readable {ADAPTER_FILE}") from error


def _merge_adapter(classifier: Any, adapter: Path, model: str) -> Any:
    """The classifier with LoRA and head merged into it: as fast as without an adapter."""
    try:
        config = PeftConfig.from_pretrained(str(adapter))
        config.base_model_name_or_path = model  # else peft asks the hub about the one named there
        adapted = PeftModel.from_pretrained(classifier, str(adapter), config=config)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise SettingsError(f"reward adapter {adapter} does not fit the model: {error}") from error
    wanted = {
        name.removeprefix("base_model.model.")
        for name in get_peft_model_state_dict(adapted, save_embedding_layers=False)
    }
    stray = wanted ^ _adapter_weights(adapter)
    if stray:
        raise SettingsError(f"reward adapter {adapter} does not fit the model: {', '.join(sorted(stray)[:3])}")
    return adapted.merge_and_unload()


def _keep_head_in_float32(classifier: Any) -> None:
    """Rewards of good answers differ by little: bfloat16's eight bits would tie them at the last layer."""
    for name in HEADS:
        head = getattr(classifier, name, None)
        if head is not None and classifier.dtype != torch.float32:
            head.float().register_forward_pre_hook(lambda _module, args: (args[0].float(), *args[1:]))


def _position_limit(model: Any, tokenizer: Any) -> int:
    """Longest input the model itself can read, in tokens."""
    limit: int = tokenizer.model_max_length  # a huge number where the tokenizer knows none
    return min(int(getattr(model.config, "max_position_embeddings", limit)), limit)


def _pad_token_id(model: Any, tokenizer: Any) -> int | None:
    """The padding token, the model's own first: it is also how a decoder classifier finds the last token it reads."""
    configured = model.config.pad_token_id
    return int(configured) if configured is not None else cast("int | None", tokenizer.pad_token_id)


def _token_that_ends_none(batch: Sequence[EncodedPair]) -> int:
    """Padding for a model that has none. The end token, the usual stand-in, would hide every answer's own."""
    last = {pair.input_ids[-1] for pair in batch}
    return next(token for token in range(len(last) + 1) if token not in last)
