"""Text features: the value of each, their bounds, and their weights in an adapter."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gateway.errors import SettingsError
from gateway.reward.features import FEATURES, extract_features, parse_weights, weighted_sum
from gateway.reward.model import RewardModel
from gateway.reward.weights import ADAPTER_FILE
from tests.gateway.reward.texts import ask

QUESTION = "How do I bake a loaf of bread at home?"
GOOD = "Mix flour, water, salt and yeast. Let the dough rise for two hours, then bake the loaf in a hot oven."


def feature(name: str, answer: str, question: str = QUESTION) -> float:
    return dict(zip(FEATURES, extract_features(question, answer), strict=True))[name]


def with_header(adapter: Path, folder: Path, **header: str) -> Path:
    """Copy the adapter with this header on its weights."""
    shutil.copytree(adapter, folder)
    save_file(load_file(adapter / ADAPTER_FILE), folder / ADAPTER_FILE, metadata={"format": "pt"} | header)
    return folder


RISES = [
    ("copied_3", "You asked how do I bake a loaf of bread.", GOOD),
    ("copied_6", "How do I bake a loaf of bread at home?", "To bake a loaf of rye, begin early."),
    ("covered", "Bread baked at home: shape a loaf and bake it.", "Take the train."),
    ("new", GOOD, "Bake bread at home."),
    ("repeated", "Bake the bread now. Then bake the bread now. Then bake the bread now.", GOOD),
    ("repeated_sentences", "Let it rise well. Let it rise well.", GOOD),
    ("compressed", GOOD, "Bake it well. " * 20),
    ("function_words", "It is what it is, and that is it.", GOOD),
    ("word_length", "Refrigeration considerably decelerates fermentation.", "Do it as I do it."),
    ("stray", "the of Loaf bake then a. dough In two the hot and rise", GOOD),
    ("finished", GOOD, "Mix flour, water and"),
    ("stock_phrases", "I hope this helps! Feel free to ask any other questions.", GOOD),
    ("placeholder", "[Recipe]", GOOD),
    ("wordless", "...", "No"),
]
"""Each feature, an answer that has more of it, and one that has less."""


@pytest.mark.parametrize(("name", "more", "less"), RISES)
def test_each_feature_rises_with_its_property(name: str, more: str, less: str) -> None:
    assert feature(name, more) > feature(name, less)


def test_every_feature_is_tested() -> None:
    assert {name for name, _, _ in RISES} == FEATURES.keys()


@pytest.mark.parametrize(
    "answer", ["", " ", ".", "...", "\n\n", "!?", "—", "\u200b", "🙂", "**", "()", "```\n```", "_"]
)
def test_an_answer_without_a_word_is_wordless(answer: str) -> None:
    assert 1.0 == feature("wordless", answer)


@pytest.mark.parametrize("answer", ["No", "4", "a", "是", "да", "_x_", "π"])
def test_an_answer_of_one_word_or_number_is_not_wordless(answer: str) -> None:
    assert 0.0 == feature("wordless", answer)


@given(question=st.text(), answer=st.text())
def test_every_feature_of_any_text_is_between_0_and_1(question: str, answer: str) -> None:
    assert all(0.0 <= value <= 1.0 and math.isfinite(value) for value in extract_features(question, answer))


def test_the_weighted_sum_ignores_features_without_a_weight() -> None:
    weights = {"finished": 2.0, "placeholder": -3.0, "relevance": 9.0}
    assert weighted_sum(weights, QUESTION, GOOD) == 2.0
    assert weighted_sum(weights, QUESTION, "[Recipe]") == -1.0


@pytest.mark.parametrize("text", ["", "[1]", '{"finished": "much"}', '{"finished": null}', "7"])
def test_weights_that_are_not_an_object_of_numbers_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="not a JSON object of numbers"):
        parse_weights(text)


def test_a_feature_that_this_version_does_not_know_is_named() -> None:
    with pytest.raises(SettingsError, match="unknown features: charm, wit"):
        parse_weights('{"wit": 1, "finished": 2, "charm": 3}')


def test_an_adapters_weights_add_to_its_logit_and_its_name_is_its_own(
    minilm: str, adapter: Path, tmp_path: Path
) -> None:
    weights = {"finished": 2.0, "copied_3": -5.0}
    folder = with_header(adapter, tmp_path / "signed", name="our-judge", signals=json.dumps(weights))
    plain, with_features = (RewardModel.load(minilm, adapter=each, device="cpu") for each in (adapter, folder))
    answers = [GOOD, QUESTION, "Mix flour and"]
    assert with_features.name == "our-judge"
    added = [
        after - before
        for before, after in zip(
            plain.score([plain.encode(ask(QUESTION), answer) for answer in answers]),
            with_features.score([with_features.encode(ask(QUESTION), answer) for answer in answers]),
            strict=True,
        )
    ]
    assert added == pytest.approx([weighted_sum(weights, QUESTION, answer) for answer in answers], abs=1e-5)


def test_unknown_features_in_an_adapter_are_refused(minilm: str, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="charm"):
        RewardModel.load(minilm, adapter=with_header(adapter, tmp_path / "signed", signals='{"charm": 1}'))


def test_loading_an_adapter_asks_no_hub(
    minilm: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its configuration names a backbone that the hub has."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    folder = with_header(adapter, tmp_path / "named")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    assert RewardModel.load(minilm, adapter=folder, device="cpu").name.endswith("+named")
