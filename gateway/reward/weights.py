"""Load a reward model's weights: a one-label sequence classifier from safetensors, with an adapter merged into it.

An adapter is a PEFT folder. The header of its weights, which their digest covers, names it and weighs text features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from gateway.errors import SettingsError
from gateway.reward.features import parse_weights

ADAPTER_FILE = "adapter_model.safetensors"
# Keys of the header:
NAME_KEY = "name"  # the model's name with the adapter
FEATURES_KEY = "signals"  # the weights of text features, as JSON (gateway.reward.features)
_BASE_PREFIX = "base_model.model."
HEADS = ("score", "classifier")  # the names of the last layer in decoder and encoder classifiers
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, the names of its weights as the base model calls them, and its header."""

    folder: Path
    weights: frozenset[str]
    name: str | None
    feature_weights: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """Read names and header, without the weights themselves.

        Raises:
            SettingsError: They cannot be read, or the header weighs an unknown feature.
        """
        try:
            with safe_open(folder / ADAPTER_FILE, framework="pt") as file:
                names = frozenset(name.removeprefix(_BASE_PREFIX) for name in file.keys())  # noqa: SIM118  (no mapping)
                header = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise SettingsError(f"reward adapter {folder} has no readable {ADAPTER_FILE}") from error
        return cls(folder, names, header.get(NAME_KEY), parse_weights(header.get(FEATURES_KEY, "{}")))


def choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"reward device {device!r} is not a device") from error
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise SettingsError(f"reward device {device!r} does not exist here")
    return target


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise SettingsError(f"reward dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Turn progress bars and load reports on stderr off: what they report is checked here and raised."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def load_base(model: str, dtype: torch.dtype, adapter: Adapter | None) -> tuple[Any, Any]:
    """Return tokenizer and classifier.

    Raises:
        SettingsError: They cannot be loaded, the model has several labels, or neither it nor the adapter brings a
            trained head, so that rewards would be random.
    """
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
    untrained = set(report["missing_keys"]) - (adapter.weights if adapter is not None else frozenset())
    if untrained:
        raise SettingsError(f"reward model {model} has no trained weights for {', '.join(sorted(untrained))}")
    return tokenizer, classifier


def merge_adapter(classifier: Any, adapter: Adapter, model: str) -> Any:
    """Merge LoRA and head into the classifier, which is then as fast as without an adapter.

    Raises:
        SettingsError: The adapter does not fit the model.
    """
    try:
        config = PeftConfig.from_pretrained(str(adapter.folder))
        config.base_model_name_or_path = model  # else peft asks the hub for the one named there
        adapted = PeftModel.from_pretrained(classifier, str(adapter.folder), config=config)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise SettingsError(f"reward adapter {adapter.folder} does not fit the model: {error}") from error
    wanted = {
        name.removeprefix(_BASE_PREFIX) for name in get_peft_model_state_dict(adapted, save_embedding_layers=False)
    }
    if stray := wanted ^ adapter.weights:
        raise SettingsError(f"reward adapter {adapter.folder} does not fit the model: {', '.join(sorted(stray)[:3])}")
    return adapted.merge_and_unload()


def keep_head_in_float32(classifier: Any) -> None:
    """Compute the head in float32: rewards of good answers differ by little, which bfloat16 would round away."""
    for name in HEADS:
        head = getattr(classifier, name, None)
        if head is not None and classifier.dtype != torch.float32:
            head.float().register_forward_pre_hook(lambda _module, args: (args[0].float(), *args[1:]))
