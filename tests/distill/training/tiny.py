"""A tiny Llama and its tokenizer, made here: nothing is downloaded, and a step takes milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distill.dataset.example import Example, ScoredAnswer
from distill.dataset.split import conversation_key
from distill.settings import TrainingSettings

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tiny_base(folder: Path, *, seed: int = 0) -> Path:
    """Two layers of 32 with random weights, over bytes."""
    tokens = ["<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=tokens[0], eos_token=tokens[1], pad_token=tokens[1]
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def tiny_examples(count: int, *, losers: int = 3, start: int = 0) -> list[Example]:
    """Races of different lengths about numbers, the winner being the longer answer."""
    return [_example(index, losers) for index in range(start, start + count)]


def settings(model: Path, **changes: object) -> TrainingSettings:
    """Settings under which the tiny model learns in a few steps."""
    wanted = {"model": str(model), "rank": 4, "alpha": 8, "batch_examples": 4, "learning_rate": 1e-2, "epochs": 2}
    return TrainingSettings.model_validate(wanted | changes)


def _example(index: int, losers: int) -> Example:
    messages = [{"role": "user", "content": f"What comes after {index}?"}]
    winner = ScoredAnswer(f"After {index} comes {index + 1}." + " Truly." * (index % 5), 2.0, 12)
    beaten = tuple(ScoredAnswer(f"{index} no {place}", place / max(1, losers), 5) for place in range(losers))
    return Example(
        key=conversation_key(messages), record_id=f"chatcmpl-{index}", time_ms=index, messages=messages, winner=winner,
        losers=beaten, margin_sd=1.0, adapter=None,
    )  # fmt: skip
