"""Small tokenizers with chat templates, of the two usual kinds: byte-level BPE, and SentencePiece's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>{% endfor %}"
WORDS = ["what is two and two four user assistant system hello world"]
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]


def byte_level(template: str = CHAT_TEMPLATE, *, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE, as GPT-2, Llama 3 and Qwen have.

    Args:
        template: The chat template.
        adds_bos: Every text gets the BOS token; else only the template writes it.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|end|>", "<|pad|>", *ROLES]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        WORDS * 50, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = template
    return tokenizer


def sentence_piece(template: str, *, prepend: str = "first") -> PreTrainedTokenizerFast:
    """Return a BPE over SentencePiece's ▁, as Llama 2, TinyLlama, Zephyr and Phi-3 have.

    Args:
        template: The chat template.
        prepend: Place of an added ▁: before the ``first`` piece of a text, ``always`` or ``never``.
    """
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    scheme: Any = prepend
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(WORDS * 50, trainers.BpeTrainer(vocab_size=600, special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = template
    return tokenizer


def save_chat_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer with a chat template to a folder."""
    byte_level().save_pretrained(folder)
