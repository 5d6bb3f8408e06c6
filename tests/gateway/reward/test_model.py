"""The local reward model: real MiniLM weights with a small adapter, and a tiny decoder with a chat template."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from gateway.embedded.weights import minilm_folder, reward_adapter_folder
from gateway.errors import RewardError, SettingsError
from gateway.reward.model import EncodedPair, RewardModel
from gateway.reward.weights import ADAPTER_FILE
from gateway.types import Message
from tests.gateway.reward.texts import TEXTS, ask

MAX_ADAPTER_BYTES = 3_000_000

# Ours: a prompt, a sane answer, and a bad one of about the same length.
JUDGED = [
    (
        "How do I keep bread fresh for longer?",
        "Keep it in a paper bag or a bread box at room temperature, and freeze what you cannot eat in two days.",
        "bread in a or cannot paper you at eat temperature box days bag room two keep freeze and what fresh it.",
    ),
    (
        "Explain why the sky is blue.",
        "Sunlight is scattered by the air, and blue light is scattered the most, so we see blue in every direction.",
        "To repot a plant, water it first, loosen the roots, and set it into a larger pot with fresh soil below.",
    ),
    (
        "Give me three tips for a job interview.",
        "Read about the company first, prepare examples of your work, and arrive ten minutes before the interview.",
        "Read about the company, read about the company, read about the company, read about the company, read about.",
    ),
    (
        "What does a librarian do?",
        "A librarian helps people find books and information, orders new titles, and keeps the shelves in good order.",
        "What does a librarian do? You asked what does a librarian do? So what does a librarian do? A librarian do?",
    ),
    (
        "Suggest a simple dinner with rice.",
        "Fry garlic and vegetables in a pan, add cooked rice and a beaten egg, and season it with soy sauce.",
        "Fry garlic and market shares fell on parliament when ocean the purple engine wrote seven under tax law.",
    ),
    (
        "How can I sleep better?",
        "Go to bed at the same time every day, keep the room dark and cool, and avoid screens late in the evening.",
        "This is a very interesting topic. There are many things to consider. It is important. I hope this helps you!",
    ),
]


@pytest.fixture(scope="session")
def encoder_model(minilm: str, adapter: Path) -> RewardModel:
    return RewardModel.load(minilm, adapter=adapter, device="cpu")


@pytest.fixture(scope="session")
def decoder_model(decoder: str) -> RewardModel:
    return RewardModel.load(decoder, device="cpu")


@pytest.fixture(params=["encoder_model", "decoder_model"])
def model(request: pytest.FixtureRequest) -> RewardModel:
    loaded = request.getfixturevalue(request.param)
    assert isinstance(loaded, RewardModel)
    return loaded


def test_the_reward_of_a_text_does_not_depend_on_its_batch(model: RewardModel) -> None:
    pairs = [model.encode(ask("What is the capital of France?"), text) for text in TEXTS]
    alone = [model.score([pair])[0] for pair in pairs]
    assert alone == pytest.approx(model.score(pairs), abs=1e-4)
    assert alone[::-1] == pytest.approx(model.score(pairs[::-1]), abs=1e-4)
    assert len({round(reward, 3) for reward in alone}) == len(TEXTS)


def test_rewards_are_the_raw_logits_of_transformers(decoder: str, decoder_model: RewardModel) -> None:
    """The same text gives the same tokens and the same logit as the library's own call, without an activation."""
    pair = decoder_model.encode(ask("hi"), "hello")
    raw = AutoModelForSequenceClassification.from_pretrained(decoder).eval()
    with torch.inference_mode():
        logit = raw(input_ids=torch.tensor([pair.input_ids])).logits.item()
    assert logit == pytest.approx(decoder_model.score([pair])[0], abs=1e-5)


def test_an_empty_batch_has_no_rewards(encoder_model: RewardModel) -> None:
    assert encoder_model.score([]) == []


def test_a_pair_is_encoded_as_prompt_then_answer(minilm: str, encoder_model: RewardModel) -> None:
    pair = encoder_model.encode(ask("hello there"), "how are you")
    assert pair.input_ids == [101, 7592, 2045, 102, 2129, 2024, 2017, 102]
    assert pair.token_type_ids == [0, 0, 0, 0, 1, 1, 1, 1]
    assert pair.length == 8
    assert not pair.prompt_truncated


def test_every_turn_of_a_conversation_reaches_the_model(model: RewardModel) -> None:
    last: list[Message] = [{"role": "user", "content": "And of Spain?"}]
    history: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "The capital of France?"},
        {"role": "assistant", "content": None},
    ]
    assert model.encode(history + last, "Madrid").length > model.encode(last, "Madrid").length


def test_a_chat_template_renders_the_answer_as_the_assistants_turn_with_one_bos(
    decoder_model: RewardModel,
) -> None:
    ids = decoder_model.encode(ask("hi"), "hello").input_ids
    text = decoder_model._tokenizer.decode(ids)
    assert text == "<|bos|><|user|>hi<|end|><|assistant|>hello<|end|>"


def test_too_long_a_prompt_keeps_its_end_and_the_whole_answer(model: RewardModel) -> None:
    short = model.encode(ask("the last words"), "a short answer")
    long = model.encode(ask("zebra " * 3000 + "the last words"), "a short answer")
    assert not short.prompt_truncated
    assert long.prompt_truncated
    assert long.length == model.max_length_tokens
    kept = model._tokenizer.decode(long.input_ids)
    assert "the last words" in kept
    assert "a short answer" in kept


def test_too_long_an_answer_loses_its_own_end_and_is_marked(model: RewardModel) -> None:
    pair = model.encode(ask("hi"), "first " + "word " * 3000 + "final")
    kept = model._tokenizer.decode(pair.input_ids)
    assert pair.prompt_truncated
    assert pair.length == model.max_length_tokens
    assert "first" in kept
    assert "final" not in kept
    assert len(model.score([pair])) == 1


def test_the_models_own_position_limit_holds(minilm: str, adapter: Path, decoder_model: RewardModel) -> None:
    assert RewardModel.load(minilm, adapter=adapter, max_length_tokens=4096).max_length_tokens == 512
    assert RewardModel.load(minilm, adapter=adapter, max_length_tokens=64).max_length_tokens == 64
    assert decoder_model.max_length_tokens == 256


@pytest.mark.parametrize("text", ["", " ", "\ud800 lone surrogate", "\x00", "🦓" * 50])
def test_odd_texts_have_rewards_too(model: RewardModel, text: str) -> None:
    [reward] = model.score([model.encode(ask(text), text)])
    assert math.isfinite(reward)


def test_a_conversation_that_the_template_refuses_is_a_reward_error(decoder_model: RewardModel) -> None:
    with pytest.raises(RewardError, match="chat template refuses"):
        decoder_model.encode([{"role": "tool", "content": "42"}], "hello")


def test_a_failing_device_is_a_reward_error(encoder_model: RewardModel) -> None:
    """Token ids beyond the vocabulary stand for any failure inside torch."""
    with pytest.raises(RewardError, match="failed on cpu"):
        encoder_model.score([EncodedPair([1] * 600)])


def test_a_model_has_a_name_a_device_and_a_dtype(encoder_model: RewardModel, adapter: Path) -> None:
    assert encoder_model.name == f"model+{adapter.name}"
    assert encoder_model.device == "cpu"
    assert encoder_model.dtype == "float32"


def test_bfloat16_keeps_the_head_in_float32(decoder: str, decoder_model: RewardModel) -> None:
    half = RewardModel.load(decoder, device="cpu", dtype="bfloat16")
    pair = half.encode(ask("hi"), "hello")
    assert half.dtype == "bfloat16"
    assert decoder_model.score([pair])[0] == pytest.approx(half.score([pair])[0], abs=0.2)


@pytest.fixture(scope="module")
def shipped() -> RewardModel:
    return RewardModel.load(str(minilm_folder()), adapter=reward_adapter_folder(), device="cpu")


def test_the_shipped_adapter_is_small_safetensors_over_the_wheels_minilm(shipped: RewardModel) -> None:
    folder = reward_adapter_folder()
    assert (folder / ADAPTER_FILE).stat().st_size <= MAX_ADAPTER_BYTES
    assert (folder / "README.md").is_file()
    assert shipped.max_length_tokens == 512


@pytest.mark.parametrize(("prompt", "good", "bad"), JUDGED, ids=[prompt for prompt, _, _ in JUDGED])
def test_the_shipped_model_ranks_a_sane_answer_above_a_bad_one(
    shipped: RewardModel, prompt: str, good: str, bad: str
) -> None:
    """Shuffled, off-topic, repetitive, parroting, derailed or empty answers, each as long as the good one."""
    better, worse = shipped.score([shipped.encode(ask(prompt), good), shipped.encode(ask(prompt), bad)])
    assert better > worse


@pytest.mark.gpu
def test_bfloat16_on_cuda_is_float32_but_for_rounding(minilm: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    full = RewardModel.load(minilm, adapter=reward_adapter_folder(), device="cuda", dtype="float32")
    half = RewardModel.load(minilm, adapter=reward_adapter_folder())
    assert half.dtype == "bfloat16"
    pairs = [full.encode(ask(prompt), text) for prompt, good, bad in JUDGED for text in (good, bad)]
    assert full.score(pairs) == pytest.approx(half.score(pairs), abs=0.25)


@pytest.mark.parametrize("bad", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_missing_folder_is_named(bad: str) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        RewardModel.load(bad)


def test_a_model_with_several_labels_is_refused(decoder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "two")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "a", "1": "b"}, {"a": 0, "b": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match="2 labels"):
        RewardModel.load(str(folder))


def test_weights_that_are_not_safetensors_are_refused(decoder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SettingsError, match="cannot be loaded"):
        RewardModel.load(str(folder))


def test_a_model_without_a_trained_head_is_refused(minilm: str) -> None:
    """Its weights would be random, and rewards noise."""
    with pytest.raises(SettingsError, match="no trained weights for classifier"):
        RewardModel.load(minilm)


def test_an_adapter_of_another_model_is_refused(decoder: str, adapter: Path) -> None:
    with pytest.raises(SettingsError, match="does not fit"):
        RewardModel.load(decoder, adapter=adapter)


def test_an_adapter_that_lacks_weights_is_refused(minilm: str, adapter: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(adapter, tmp_path / "holed")
    weights = load_file(folder / ADAPTER_FILE)
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, folder / ADAPTER_FILE)
    with pytest.raises(SettingsError, match="does not fit"):
        RewardModel.load(minilm, adapter=folder)


def test_an_adapter_without_safetensors_is_refused(minilm: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no readable"):
        RewardModel.load(minilm, adapter=tmp_path)


@pytest.mark.parametrize(
    ("device", "dtype", "message"),
    [("abacus", "auto", "not a device"), ("cuda:99", "auto", "does not exist"), ("cpu", "int4", "none of auto")],
)
def test_a_device_or_dtype_that_does_not_exist_is_named(decoder: str, device: str, dtype: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RewardModel.load(decoder, device=device, dtype=dtype)


def test_a_slow_tokenizer_is_refused(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(SettingsError, match="no fast tokenizer"):
        RewardModel.load(decoder)


def test_a_models_own_padding_token_is_kept(decoder: str, tmp_path: Path) -> None:
    folder = shutil.copytree(decoder, tmp_path / "padded")
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    padded = RewardModel.load(str(folder), device="cpu")
    pairs = [padded.encode(ask("hi"), text) for text in TEXTS]
    assert padded.score(pairs) == pytest.approx([padded.score([pair])[0] for pair in pairs], abs=1e-4)
    assert padded._model.config.pad_token_id == 7


@pytest.mark.parametrize("question", ["Is the sun cold?", "What is two and two?", "Write a poem about the sea."])
def test_the_shipped_model_prefers_any_word_to_silence(shipped: RewardModel, question: str) -> None:
    silent = ["", " ", ".", "...", "!", "?", "—", "\n", "🙂", "()", "***", '""']
    said = ["No", "No.", "Yes", "4", "Four.", "I do not know.", "Red", "a", "None"]
    silent_best = max(shipped.score([shipped.encode(ask(question), text) for text in silent]))
    said_worst = min(shipped.score([shipped.encode(ask(question), text) for text in said]))
    assert silent_best < said_worst
