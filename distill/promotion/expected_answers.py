"""Expected answers of the weight check, computed offline: the adapter's greedy answers under each model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError

from distill.errors import PromotionError
from distill.promotion.weight_check import ANSWER_TOKENS, BASE, PROMPTS, ExpectedAnswers, ExpectedToken
from distill.training.base import Base

_LEAST_ANSWERS = 3
_LISTED = 40
_DECIMALS = 4
_PART = "\ufffd"  # in the text of a token that is a part of a character: servers differ in how they write those


def compute_expected_answers(base: Base, adapter: Path, rivals: Mapping[str, Path]) -> ExpectedAnswers:
    """Compute an adapter's greedy answers, with log-probabilities by the adapter, its rivals and the base.

    Args:
        base: The base without any adapter; adapters are added to it.
        adapter: PEFT's folder.
        rivals: Folders of other adapters on this base, by name.

    Raises:
        PromotionError: An adapter does not fit the base, or the adapter does not answer.
    """
    try:
        model: Any = PeftModel.from_pretrained(base.model, str(adapter), adapter_name="adapter")
        for name, folder in rivals.items():
            model.load_adapter(str(folder), adapter_name=_key(name))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise PromotionError(f"an adapter does not fit the base: {str(error).splitlines()[0]}") from error
    model.eval()
    answers = {prompt: _answer(model, base.tokenizer, prompt, list(rivals)) for prompt in PROMPTS}
    given = {prompt: answer for prompt, answer in answers.items() if answer}
    if len(given) < _LEAST_ANSWERS:
        empty = len(PROMPTS) - len(given)
        raise PromotionError(f"the adapter's answers to {empty} of {len(PROMPTS)} prompts are empty")
    return ExpectedAnswers(list(given), list(given.values()))


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, prompt: str, rivals: list[str]) -> list[ExpectedToken]:
    """Return the greedy answer token by token; ids have the shape (1, tokens)."""
    conversation = [{"role": "user", "content": prompt}]
    rendered = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_tensors="pt")
    asked = rendered["input_ids"].to(model.device)
    model.set_adapter("adapter")
    ids = model.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=tokenizer.eos_token_id,
    )
    if ids[0, -1].item() in _ends(model, tokenizer):
        ids = ids[:, :-1]
    start = asked.shape[1]
    logprobs = {"": _logprobs(model, ids, start)}
    for rival in rivals:
        model.set_adapter(_key(rival))
        logprobs[rival] = _logprobs(model, ids, start)
    with model.disable_adapter():
        logprobs[BASE] = _logprobs(model, ids, start)
    texts = [tokenizer.decode([token]) for token in ids[0, start:].tolist()]
    return [
        ExpectedToken(text, {name: _likeliest(rows[place], tokenizer) for name, rows in logprobs.items()})
        for place, text in enumerate(itertools.takewhile(lambda text: _PART not in text, texts))
    ]


def _logprobs(model: Any, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Return log-probabilities at each place from ``start`` on, shape (places, vocabulary)."""
    logits = model(ids).logits[0, start - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)


def _likeliest(logprobs: torch.Tensor, tokenizer: Any) -> dict[str, float]:
    """Return the likeliest tokens by text; of two with one text the likelier."""
    likely = logprobs.topk(min(_LISTED, logprobs.numel()))
    listed: dict[str, float] = {}
    for token, logprob in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
        text = tokenizer.decode([token])
        if _PART not in text:
            listed.setdefault(text, round(logprob, _DECIMALS))
    return listed


def _ends(model: Any, tokenizer: Any) -> set[int]:
    named = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}


def _key(name: str) -> str:
    """Return a name that torch accepts for a module: without dots."""
    return f"rival-{name}".replace(".", "-")
