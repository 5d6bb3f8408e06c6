"""The tiny Llama as llama.cpp reads it, in float32, and LoRAs of random weights for it, with exact results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from distill.promotion.gguf_lora import reorder_rows

RANK = 4


def tiny_gguf(base: Path, path: Path) -> Path:
    """Convert the tiny base: names and the order of q's and k's rows are llama.cpp's."""
    config = json.loads((base / "config.json").read_bytes())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["q_proj"])
    writer.add_head_count_kv(heads["k_proj"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads["q_proj"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    _add_tokenizer(writer, base)
    places = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        n_heads = heads.get(module.rpartition(".")[2])
        matrix = tensor if n_heads is None else reorder_rows(tensor, n_heads)
        writer.add_tensor(f"{places.get_name(module)}.weight", np.ascontiguousarray(matrix, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_checkpoint(folder: Path, base: Path, *, seed: int, strength: float = 0.5) -> Path:
    """A checkpoint as PEFT writes it, on every linear layer of the tiny base."""
    draw = np.random.default_rng(seed)
    weights = {}
    for name, tensor in sorted(load_file(base / "model.safetensors").items()):
        if name.endswith("_proj.weight"):
            outputs, inputs = tensor.shape
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            weights[f"{stem}.lora_A.weight"] = draw.normal(0, inputs**-0.5, (RANK, inputs)).astype(np.float32)
            weights[f"{stem}.lora_B.weight"] = draw.normal(0, strength, (outputs, RANK)).astype(np.float32)
    return save_checkpoint(folder, weights)


def save_checkpoint(folder: Path, weights: dict[str, Any], **config: object) -> Path:
    """Write PEFT's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    modules = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    plain: dict[str, object] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    fields = plain | {"target_modules": modules, "base_model_name_or_path": "/somewhere/else"} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def _add_tokenizer(writer: gguf.GGUFWriter, base: Path) -> None:
    vocabulary = json.loads((base / "tokenizer.json").read_bytes())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if t.startswith("<|") else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(["Ā ā"])  # llama.cpp wants one; these two bytes never meet
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_add_bos_token(False)
    writer.add_chat_template((base / "chat_template.jinja").read_text())
