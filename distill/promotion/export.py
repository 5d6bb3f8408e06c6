"""Export of adapters to llama.cpp, which loads GGUF files. vLLM, and TGI at its start, load the adapter's folder."""

from __future__ import annotations

from pathlib import Path

from distill.promotion import gguf_lora
from distill.promotion.adapter import Adapter


def export_gguf(adapter: Adapter, folder: Path) -> Path:
    """Write ``folder/<name>.gguf`` if it is missing, and return it. llama.cpp's replicas name the adapter by the stem.

    Raises:
        PromotionError: The conversion of this kind of base is not known.
    """
    path = folder / f"{adapter.name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        gguf_lora.write(path, adapter.weights(), adapter.config(), adapter.manifest.base)
    return path
