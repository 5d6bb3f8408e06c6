"""Weights of text features: a linear Bradley–Terry model, fitted on human and spoiled pairs.

It is convex and has a dozen weights, so it generalises from a few hundred prompts, which a fine-tuned encoder does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from scipy.optimize import minimize

from distill.reward_training.preferences import Group
from gateway.reward.features import FEATURES, RELEVANCE, WORDLESS, extract_features
from gateway.reward.model import RewardModel, prompt_text
from gateway.reward.relevance import CEILING, Relevance, reads_pairs
from gateway.reward.weights import quiet_transformers

RIDGE = 0.01  # on weights of standardised features; a third or three times as much changes nothing
SPOILED_SHARE = 0.5  # all spoiled pairs together weigh half of all human ones: they are easier, and artificial
CHUNK_TEXTS = 16
LORA_REACH = 1.0  # the largest difference of LoRA's weighted logit between two answers

Floats = np.ndarray[Any, np.dtype[np.float64]]


def fit_weights(reader: RewardModel, base: str, human: Sequence[Group], spoiled: Sequence[Group]) -> dict[str, float]:
    """Fit weights by feature, with ``RELEVANCE`` among them if the backbone reads pairs.

    Args:
        reader: Encodes texts as in serving.
        base: Folder of its backbone, for the relevance.
        human: Human comparisons.
        spoiled: Good answers and spoiled versions of them.
    """
    relevance = _relevance_of(reader, base) if reads_pairs(reader.tokenizer) else None
    names = [*FEATURES] if relevance is None else [*FEATURES, RELEVANCE]
    differences_NS, weights_N, texts_TS = _differences(human, relevance)
    scale_S = np.sqrt((differences_NS**2).mean(axis=0))
    scale_S[scale_S == 0] = np.inf  # a feature in which no two answers differ gets no weight
    if spoiled:
        spoiled_NS, spoiled_N, spoiled_texts_TS = _differences(spoiled, relevance)
        texts_TS = np.vstack([texts_TS, spoiled_texts_TS])
        differences_NS = np.vstack([differences_NS, spoiled_NS])
        weights_N = np.concatenate([weights_N, spoiled_N * SPOILED_SHARE * weights_N.sum() / spoiled_N.sum()])
    fitted_S = _bradley_terry(differences_NS / scale_S, weights_N / weights_N.mean())
    weights = {name: round(float(weight), 4) for name, weight in zip(names, fitted_S / scale_S, strict=True)}
    return weights | {WORDLESS: _wordless_weight(weights, lowest=float((texts_TS @ [*weights.values()]).min()))}


def _wordless_weight(weights: Mapping[str, float], *, lowest: float) -> float:
    """Return the weight with which an answer without words ranks below every answer of the training data.

    No pairs hold such answers, and without this weight an empty answer has a fair reward: it copies nothing, repeats
    nothing and stays on topic.

    Args:
        weights: Of the other features.
        lowest: The lowest sum of weighted features in the training data.
    """
    # The features that an answer without words can have: a stop, no redundancy, similarity to the question.
    highest = sum(max(0.0, weights.get(name, 0.0)) for name in ("finished", "compressed"))
    highest += CEILING * max(0.0, weights.get(RELEVANCE, 0.0))
    return -float(math.ceil(highest - lowest + LORA_REACH))


def _bradley_terry(differences_NS: Floats, weights_N: Floats) -> Floats:
    """Return the weights θ (S,) that minimise the mean of −w log σ(dθ), with a ridge."""

    def loss(theta_S: Floats) -> tuple[float, Floats]:
        margins_N = differences_NS @ theta_S
        value = (weights_N * np.logaddexp(0.0, -margins_N)).mean() + RIDGE * theta_S @ theta_S
        # σ(−m), written so that it cannot overflow
        slopes_N = -weights_N * np.exp(-np.logaddexp(0.0, margins_N))
        return float(value), (differences_NS * slopes_N[:, None]).mean(axis=0) + 2 * RIDGE * theta_S

    start_S = np.zeros(differences_NS.shape[1])
    return cast("Floats", minimize(loss, start_S, jac=True, method="L-BFGS-B").x)


def _differences(groups: Sequence[Group], relevance: Callable[[Group], Floats] | None) -> tuple[Floats, Floats, Floats]:
    """Return features of better minus worse texts (N comparisons × S features), weights (N,), all features (T × S)."""
    rows, weights, texts = [], [], []
    for group in groups:
        question = prompt_text(group.messages)
        features_TS = np.array([extract_features(question, text) for text in group.texts])
        if relevance is not None:
            features_TS = np.hstack([features_TS, relevance(group)[:, None]])
        texts.append(features_TS)
        for comparison in group.comparisons:
            rows.append(features_TS[comparison.better] - features_TS[comparison.worse])
            weights.append(comparison.weight)
    return np.array(rows), np.array(weights), np.vstack(texts)


def _relevance_of(reader: RewardModel, base: str) -> Callable[[Group], Floats]:
    """Return a function that computes the unweighted relevance of every text of a group."""
    with quiet_transformers():
        device = torch.device(reader.device)
        relevance = Relevance.load(base, 1.0, reader.tokenizer, device=device, dtype=torch.float32)

    def of(group: Group) -> Floats:
        encoded = [reader.encode(group.messages, text) for text in group.texts]
        chunks = [encoded[start : start + CHUNK_TEXTS] for start in range(0, len(encoded), CHUNK_TEXTS)]
        with torch.inference_mode():
            values = [
                relevance([pair.input_ids for pair in chunk], [pair.token_type_ids or [] for pair in chunk])
                for chunk in chunks
            ]
        return cast("Floats", torch.cat(values).double().cpu().numpy())

    return of
