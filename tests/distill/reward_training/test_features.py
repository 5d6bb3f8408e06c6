"""Weights of text features, fitted on real MiniLM embeddings and real counts."""

from __future__ import annotations

from itertools import pairwise

import pytest
from transformers import AutoModel, AutoTokenizer

from distill.reward_training.features import fit_weights
from distill.reward_training.preferences import Group
from gateway.embedded.weights import minilm_folder
from gateway.reward.features import FEATURES, RELEVANCE, WORDLESS, weighted_sum
from gateway.reward.model import RewardModel

TOPICS = ("bread", "bicycles", "volcanoes", "violins", "whales", "gardens")


def finished_above_not(topic: str) -> Group:
    group = Group((("user", f"Tell me of {topic}."),))
    group.compare(f"Many love {topic} for what they are.", f"Many love {topic} for what they were and", "ours")
    return group


def on_topic_above_not(topic: str, other: str) -> Group:
    group = Group((("user", f"What are {topic} like?"),))
    group.compare(f"Of {topic} one can say a great deal.", f"Of {other} one can say a great deal.", "off_topic")
    return group


@pytest.fixture(scope="module")
def reader() -> RewardModel:
    base = str(minilm_folder())
    return RewardModel(
        AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base), name="reader", max_length_tokens=512
    )


def test_the_weights_rank_an_unseen_question_as_people_and_spoiled_answers_do(reader: RewardModel) -> None:
    human = [finished_above_not(topic) for topic in TOPICS]
    spoiled = [on_topic_above_not(*both) for both in pairwise(TOPICS)]
    weights = fit_weights(reader, str(minilm_folder()), human, spoiled)
    assert weights.keys() == {*FEATURES, RELEVANCE}
    assert weights["finished"] > 0
    assert weights["placeholder"] == 0  # nobody had one
    question = "Tell me of rivers."
    whole, cut = (
        weighted_sum(weights, question, text) for text in ("Rivers run to the sea.", "Rivers run to the sea and")
    )
    assert whole > cut


def test_relevance_counts_when_only_the_topic_differs(reader: RewardModel) -> None:
    groups = [on_topic_above_not(*both) for both in pairwise(TOPICS)]
    assert fit_weights(reader, str(minilm_folder()), groups, [])[RELEVANCE] > 0


def test_the_same_pairs_give_the_same_weights(reader: RewardModel) -> None:
    groups = [finished_above_not(topic) for topic in TOPICS]
    first, again = (fit_weights(reader, str(minilm_folder()), groups, []) for _ in range(2))
    assert first == again


def test_a_backbone_that_does_not_read_pairs_has_no_relevance(
    reader: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader.tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    assert RELEVANCE not in fit_weights(reader, str(minilm_folder()), [finished_above_not("maps")], [])


def test_an_empty_answer_ranks_below_every_answer_of_the_training_data(reader: RewardModel) -> None:
    """No pairs hold it, and it would be rewarded for not copying, repeating or stopping early."""
    human = [finished_above_not(topic) for topic in TOPICS]
    weights = fit_weights(reader, str(minilm_folder()), human, [on_topic_above_not(*both) for both in pairwise(TOPICS)])
    apart = weights[RELEVANCE]
    lowest = min(
        weighted_sum(weights, group.prompt[-1][1], text) - max(apart, 0.0) for group in human for text in group.texts
    )
    silent = max(weighted_sum(weights, "Tell me of bread.", text) for text in ("", ".", "...", "!", "\n"))
    assert silent + 0.7 * max(apart, 0.0) < lowest + max(apart, 0.0)
    assert weights[WORDLESS] >= -30, "not so low that one such answer decides a mean"
