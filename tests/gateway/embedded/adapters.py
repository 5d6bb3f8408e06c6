"""LoRA adapters with random weights for SmolLM2, different enough that a few greedy tokens distinguish them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.promotion import gguf_lora
from distill.promotion.adapter import BaseFacts

_SMOLLM2 = BaseFacts("SmolLM2-135M-Instruct", "llama", layers=30, heads=9, kv_heads=3)
_RANK = 4


def random_adapter(path: Path, *, seed: int, strength: float = 1.0) -> Path:
    """Write a GGUF LoRA on the down projections of SmolLM2."""
    draw = np.random.default_rng(seed)
    weights = {}
    for layer in range(30):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        weights[f"{name}.lora_A.weight"] = draw.normal(0, 1 / 40, (_RANK, 1536)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = draw.normal(0, strength, (576, _RANK)).astype(np.float32)
    gguf_lora.write(path, weights, {"lora_alpha": _RANK, "r": _RANK}, _SMOLLM2)
    return path
