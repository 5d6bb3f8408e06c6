"""An adapter in the form that each backend loads. Every export is whole or absent, and done once.

vLLM, and TGI at its start, load the adapter's own folder. TGI is better off with merged weights, which keep its prefix
cache; llama.cpp wants a GGUF file.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from distill.errors import PromotionError
from distill.promotion import gguf_lora
from distill.promotion.adapter import Adapter
from gateway.files import sync_file, sync_folder


def export_gguf(adapter: Adapter, folder: Path) -> Path:
    """The adapter as ``folder/<name>.gguf``, where llama.cpp's replicas take it from; its stem is their name for it.

    Raises:
        PromotionError: Its base is of a kind whose conversion is not known.
    """
    path = folder / f"{adapter.name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        gguf_lora.write(path, adapter.weights(), adapter.config(), adapter.manifest.base)
    return path


def export_merged(adapter: Adapter, folder: Path, *, model: str) -> Path:
    """The base with the adapter merged in as ``folder/<name>``: a model of its own with tokenizer, in safetensors.

    Args:
        adapter: What to merge.
        folder: Where merged models lie; made when missing.
        model: The base, as ``DISTILL_TRAINING__MODEL`` says it.

    Raises:
        PromotionError: The adapter was trained on another base.
        TrainingError: The base cannot be loaded.
    """
    path = folder / adapter.name
    if path.is_dir():
        return path
    from peft import PeftModel

    from distill.training.base import load_base, name_of

    if name_of(model) != adapter.manifest.base.name:
        raise PromotionError(f"{adapter.name} belongs to {adapter.manifest.base.name}, not to {name_of(model)}")
    folder.mkdir(parents=True, exist_ok=True)
    base = load_base(model)
    merged = PeftModel.from_pretrained(base.model, str(adapter.folder)).merge_and_unload(safe_merge=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as unfinished:
        half = Path(unfinished) / adapter.name
        merged.save_pretrained(half)
        base.tokenizer.save_pretrained(half)
        for file in half.iterdir():
            file.chmod(0o444)
            sync_file(file)
        os.rename(half, path)
    sync_folder(folder)
    return path
