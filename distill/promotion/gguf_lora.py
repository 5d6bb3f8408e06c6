"""Convert a PEFT LoRA to the GGUF file that llama.cpp loads with its base.

llama.cpp applies ``alpha / rank`` itself, with one alpha for the file. Its conversion of Llama weights reorders the
rows of q and k within each head (rotary pairs are adjacent there, half a head apart in transformers), so the rows of B
for q and k are reordered in the same way; A reads the layer's input, whose order is the same everywhere.

Source: llama.cpp's adapter format (``general.type = adapter``); README of its convert_lora_to_gguf.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from distill.errors import PromotionError
from distill.promotion.adapter import Adapter, BaseFacts, read_config, read_weights
from gateway.files import atomic_replace

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

# transformers' model_type → llama.cpp's architecture, and whether its conversion reorders q and k.
_ARCHITECTURES = {
    "llama": (gguf.MODEL_ARCH.LLAMA, True),
    "mistral": (gguf.MODEL_ARCH.LLAMA, True),
    "qwen2": (gguf.MODEL_ARCH.QWEN2, False),
    "qwen3": (gguf.MODEL_ARCH.QWEN3, False),
}


def export_gguf(adapter: Adapter, folder: Path) -> Path:
    """Write ``folder/<name>.gguf`` if it is missing, and return it. llama.cpp's replicas name the adapter by the stem.

    Raises:
        PromotionError: The conversion of this kind of base is not known.
    """
    path = folder / f"{adapter.name}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(path, read_weights(adapter.folder), read_config(adapter.folder), adapter.manifest.base)
    return path


def write(path: Path, weights: dict[str, npt.NDArray[Any]], config: dict[str, Any], base: BaseFacts) -> None:
    """Write the adapter atomically.

    Args:
        path: The file to write; its stem is the adapter's name for llama.cpp's replicas.
        weights: PEFT's tensors by name: ``lora_A`` of shape (rank, inputs), ``lora_B`` of shape (outputs, rank).
        config: PEFT's ``adapter_config.json``.
        base: The base that the weights were trained on.

    Raises:
        PromotionError: llama.cpp has no name for a tensor, or the conversion of this kind of base is not known.
    """
    if base.kind not in _ARCHITECTURES:
        raise PromotionError(f"no GGUF export for a base of the kind {base.kind} (known: {', '.join(_ARCHITECTURES)})")
    architecture, reordered = _ARCHITECTURES[base.kind]
    places = gguf.get_tensor_name_map(architecture, base.layers)
    heads = {"q_proj": base.heads, "k_proj": base.kv_heads} if reordered else {}
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, _alpha(config))
    for name, tensor in sorted(weights.items()):
        module, side = parts(name)
        place = places.get_name(module)
        if place is None:
            raise PromotionError(f"llama.cpp has no place for the adapter's tensor {name}")
        n_heads = heads.get(module.rpartition(".")[2])
        matrix = tensor.astype(np.float32)
        if side == "B" and n_heads is not None:
            matrix = reorder_rows(matrix, n_heads)
        writer.add_tensor(f"{place}.weight.lora_{side.lower()}", np.ascontiguousarray(matrix))
    with atomic_replace(path, durable=True) as draft:
        writer.write_header_to_file(draft)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        draft.chmod(0o444)


def parts(name: str) -> tuple[str, str]:
    """Return the module that a PEFT tensor adapts, by its name in the base, and the side: A or B.

    Raises:
        PromotionError: It is not a LoRA matrix.
    """
    match = _KEY.fullmatch(name)
    if match is None:
        raise PromotionError(f"{name} is not a LoRA matrix")
    return match["module"], match["side"]


def reorder_rows(matrix: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """Reorder rows within each head from transformers' order (first halves, then second halves) to adjacent pairs."""
    rows, columns = matrix.shape
    return matrix.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _alpha(config: dict[str, Any]) -> float:
    """Return the alpha with which llama.cpp's alpha / rank equals PEFT's scale."""
    alpha, rank = float(config["lora_alpha"]), float(config["r"])
    return alpha * rank**0.5 if config.get("use_rslora") else alpha
