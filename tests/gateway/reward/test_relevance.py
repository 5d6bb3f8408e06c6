"""Relevance as a part of the reward, on MiniLM's real embeddings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.reward.model import RewardModel
from gateway.reward.relevance import CEILING
from tests.gateway.reward.test_features import with_header
from tests.gateway.reward.texts import TEXTS, ask


@pytest.fixture(scope="module")
def relevant_model(minilm: str, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    folder = with_header(adapter, tmp_path_factory.mktemp("relevance") / "adapter", signals='{"relevance": 6.0}')
    return RewardModel.load(minilm, adapter=folder, device="cpu")


@pytest.fixture(scope="module")
def encoder_model(minilm: str, adapter: Path) -> RewardModel:
    return RewardModel.load(minilm, adapter=adapter, device="cpu")


def test_repeating_the_question_earns_no_more_than_a_good_answer(
    relevant_model: RewardModel, encoder_model: RewardModel
) -> None:
    """Its cosine is 1, but the reward rises only to the ceiling."""
    pair = encoder_model.encode(ask("a cat on a mat"), "a cat on a mat")
    assert encoder_model.score([pair])[0] + 6.0 * CEILING == pytest.approx(relevant_model.score([pair])[0], abs=1e-4)


def test_an_answer_to_the_question_is_more_relevant_than_one_to_another(
    relevant_model: RewardModel, encoder_model: RewardModel
) -> None:
    def relevance(answer: str) -> float:
        pair = encoder_model.encode(ask("How do I bake bread at home?"), answer)
        return relevant_model.score([pair])[0] - encoder_model.score([pair])[0]

    assert relevance("Mix flour, water, salt and yeast, let it rise, and bake the loaf.") > 2.0
    assert relevance("The parliament meets twice a year to vote on taxes.") < 1.0


def test_the_reward_with_relevance_does_not_depend_on_the_batch(relevant_model: RewardModel) -> None:
    pairs = [relevant_model.encode(ask(prompt), text) for prompt in ("What is Paris?", "", "Hi") for text in TEXTS]
    alone = [relevant_model.score([pair])[0] for pair in pairs]
    assert alone == pytest.approx(relevant_model.score(pairs), abs=1e-4)


def test_empty_and_over_long_texts_have_a_reward(relevant_model: RewardModel) -> None:
    pairs = [
        relevant_model.encode(ask(prompt), answer) for prompt, answer in (("", ""), ("zebra " * 900, "word " * 900))
    ]
    assert [True, True] == [math.isfinite(reward) for reward in relevant_model.score(pairs)]


def test_a_backbone_that_does_not_read_pairs_is_refused(
    minilm: str, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.BertTokenizer.model_input_names", ["input_ids", "attention_mask"])
    with pytest.raises(SettingsError, match="does not read pairs"):
        RewardModel.load(minilm, adapter=with_header(adapter, tmp_path / "adapter", signals='{"relevance": 1}'))
