"""Write a model folder for vLLM's front end: SmolLM2's tokenizer and template, and a configuration.

Run by the Python of vLLM's environment: ``python model.py GGUF_FILE FOLDER [classifier]``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig


def main(gguf: Path, folder: Path, architecture: str) -> None:
    """Write tokenizer and configuration; the scripted engine needs no weights."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=[architecture],
        num_labels=1,
    )
    config.save_pretrained(folder)


if __name__ == "__main__":
    classifier = len(sys.argv) > 3 and sys.argv[3] == "classifier"
    main(Path(sys.argv[1]), Path(sys.argv[2]), "LlamaForSequenceClassification" if classifier else "LlamaForCausalLM")
