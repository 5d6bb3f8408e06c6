"""Examples as tokens: what carries loss, what is left out, and the very prompt that the backend reads."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from distill.training.base import embedded_folder
from distill.training.encode import IGNORED, LeftOut, encode_pairs, encode_turn, encode_winners
from gateway.embedded.llama import LlamaServer
from tests.distill.training.tiny import tiny_examples
from tests.tokenizers import byte_level, sentence_piece


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def test_loss_is_on_the_answer_and_its_end_of_turn_only(tokenizer: Any) -> None:
    """The conversation carries none, the newline after the turn is gone."""
    (example,) = tiny_examples(1)
    (row,) = encode_winners(tokenizer, [example], 512).rows
    trained = [token for token in row["labels"] if token != IGNORED]
    assert f"{example.winner.text}<|im_end|>" == tokenizer.decode(trained)
    assert row["input_ids"][-len(trained) :] == trained
    assert "<|im_start|>user\nWhat comes after 0?<|im_end|>\n<|im_start|>assistant\n" == tokenizer.decode(
        row["input_ids"][: -len(trained)]
    )


def test_a_pair_shares_its_prompt(tokenizer: Any) -> None:
    """Winner and rejected answer follow the same conversation."""
    (example,) = tiny_examples(1)
    (row,) = encode_pairs(tokenizer, [example], 512).rows
    assert f"{example.winner.text}<|im_end|>" == tokenizer.decode(row["chosen_ids"])
    assert f"{example.losers[0].text}<|im_end|>" == tokenizer.decode(row["rejected_ids"])
    assert row["prompt_ids"] == encode_turn(tokenizer, example.messages, "")[0]


def test_what_is_left_out_is_counted_under_its_reason(tokenizer: Any) -> None:
    """Too long, without a loser, or refused by the template: the rest trains."""
    good, long, alone, odd = tiny_examples(4)
    long = replace(long, winner=replace(long.winner, text="x" * 600))
    odd = replace(odd, messages=[{"role": "user", "content": None}])
    encoded = encode_pairs(tokenizer, [good, long, replace(alone, losers=()), odd], 512)
    assert 1 == len(encoded.rows)
    assert {LeftOut.TOO_LONG: 1, LeftOut.NO_LOSER: 1, LeftOut.TEMPLATE: 1} == encoded.left_out
    encoded = encode_winners(tokenizer, [good, long, odd], 512)
    assert {LeftOut.TOO_LONG: 1, LeftOut.TEMPLATE: 1} == encoded.left_out


def test_a_template_that_does_not_write_the_answer_is_refused(tiny: Path) -> None:
    """The end of a turn cannot be learned from it."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(ValueError, match="does not write"):
        encode_turn(tokenizer, [{"role": "user", "content": "a"}], "b")


TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}EOS\n{% endfor %}"
OPENINGS = ["<|assistant|>\n", "<|assistant|>", "<|assistant|> ", "### Answer: ", "\n", "", "<|assistant|>\n<think>\n"]
ANSWERS = ["four", " four", "\nfour\n", "four is two and two", "\n\n", "é", "two and two is four\n</think>\n\nfour"]


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("kind", ["bytes", "first", "never"])
def test_an_answer_is_learned_as_it_follows_the_served_prompt(kind: str, opening: str) -> None:
    """The prompt's tokens are those of the prompt alone, and what is learned after them reads as it was drawn."""
    template = TURNS.replace("EOS", "<|end|>" if kind == "bytes" else "</s>")
    template += "{% if add_generation_prompt %}" + opening + "{% endif %}"
    tokenizer = byte_level(template) if kind == "bytes" else sentence_piece(template, prepend=kind)
    question = [{"role": "user", "content": "what is two and two"}]
    served = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    for text in ANSWERS:
        prompt, answer = encode_turn(tokenizer, question, text)
        assert prompt == tokenizer(served, add_special_tokens=False)["input_ids"]
        assert answer.count(tokenizer.eos_token_id) == 1
        assert answer[-1] == tokenizer.eos_token_id
        whole = tokenizer(f"{served}{text}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(whole) == tokenizer.decode(prompt + answer)
        if whole[: len(prompt)] == prompt:
            assert whole == prompt + answer


def test_a_template_that_writes_answers_anew_has_no_say_in_what_is_learned() -> None:
    """As hybrid reasoning models have: an empty think block before the last answer, no spaces around it."""
    tokenizer = byte_level(
        "{% for m in messages %}[{{ m.role }}]\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    _, answer = encode_turn(tokenizer, [{"role": "user", "content": "what is two and two"}], " four ")
    assert " four <|end|>" == tokenizer.decode(answer)


def test_a_turn_without_an_end_token_is_kept_whole(tiny: Path) -> None:
    """Some templates end a turn by other means."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}|{% endfor %}"
    _, answer = encode_turn(tokenizer, [{"role": "user", "content": "a"}], "b")
    assert "b|" == tokenizer.decode(answer)


def test_training_reads_the_prompt_that_llama_cpp_writes() -> None:
    """SmolLM2's default system prompt included: text and token ids are those of the serving backend."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_folder())
    conversations: list[list[dict[str, str]]] = [
        [{"role": "user", "content": "Name three rivers, please."}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Straße?\n\n∑ 12345 "}],
        [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "<b>bye</b>"},
        ],
    ]
    with LlamaServer(slots=1, threads=1) as server:
        for messages in conversations:
            text = _post(server.url, "/apply-template", {"messages": messages})["prompt"]
            ids = _post(server.url, "/tokenize", {"content": text, "add_special": False, "parse_special": True})
            prompt, _ = encode_turn(tokenizer, messages, "Fine.")
            assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert ids["tokens"] == prompt


def _post(url: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)
