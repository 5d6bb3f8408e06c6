"""Train a reward model from files to files: read, split by prompt, train, save, reload, measure."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from distill.errors import DataError
from distill.reward_training.accuracy import ScoredPair, human_report, robustness_report
from distill.reward_training.features import fit_weights
from distill.reward_training.model import Progress, Recipe, save, score_groups, train
from distill.reward_training.preferences import Preference, folds, human_groups, read_answers, read_preferences
from distill.reward_training.spoil import KINDS, Source, auxiliary_groups, trimmed
from gateway.files import write_atomically
from gateway.reward.model import RewardModel

METRICS_FILE = "metrics.json"
MAX_MEASURED = 60  # answers spoiled in every way: enough for narrow intervals and a dozen weights
MAX_LENGTH_TOKENS = 512  # as served: the cost of features hardly depends on length


@dataclass(frozen=True, slots=True)
class _Split:
    """Pairs and answers, split by prompt into those for training and those for measuring only."""

    train: list[Preference]
    test: list[Preference]
    train_answers: list[Source]
    test_answers: list[Source]


def run(
    pairs_file: Path,
    out: Path,
    *,
    base: Path,
    base_name: str,
    name: str,
    answers_file: Path | None,
    n_folds: int,
    held_out: int,
    recipe: Recipe,
    progress: Progress,
    feedback: Sequence[Preference] = (),
) -> dict[str, Any]:
    """Train on all folds but one, write adapter and metrics to ``out``, and return the metrics.

    A run that stops or fails before the end leaves nothing in ``out``. The written adapter is measured: it is loaded
    again as the gateway loads it.

    Raises:
        DataError: A file is bad, or a fold is empty.
        SettingsError: The base model cannot be loaded.
    """
    started = monotonic()
    data = _split([*read_preferences(pairs_file), *feedback], answers_file, n_folds, held_out)
    if not data.train or not data.test:
        raise DataError(f"{pairs_file}: too few prompts for fold {held_out} of {n_folds}: one side is empty")
    reward = train(str(base), data.train, data.train_answers, recipe, progress)
    weights = _feature_weights(reward, base, data.train, data.train_answers, recipe) if recipe.signals else {}
    trained_s = monotonic() - started
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
        save(
            reward,
            Path(unfinished),
            base_name,
            name=name,
            features=weights,
            lora_share=recipe.lora_share if recipe.signals else 1.0,
        )
        served = RewardModel.load(str(base), adapter=Path(unfinished))
        metrics = {
            "base": base_name,
            "name": served.name,
            "recipe": asdict(recipe),
            "folds": n_folds,
            "held_out_fold": held_out,
            "data": _describe(data, pairs_file, answers_file),
            "signals": weights,
            "human": measure_human(served, data.test),
            "spoiled": measure_spoiled(served, data.test, data.test_answers, recipe.seed),
            "torch": torch.__version__,
            "trained_s": round(trained_s, 1),
            "measured_s": round(monotonic() - started - trained_s, 1),
        }
        (Path(unfinished) / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        for file in Path(unfinished).iterdir():
            write_atomically(out / file.name, file.read_bytes())
    return metrics


def _describe(data: _Split, pairs_file: Path, answers_file: Path | None) -> dict[str, Any]:
    return {
        "pairs_sha256": _sha256(pairs_file),
        "answers_sha256": _sha256(answers_file) if answers_file else None,
        "trained_on": dict(Counter(pair.source for pair in data.train)),
    }


def _split(pairs: Sequence[Preference], answers_file: Path | None, n_folds: int, held_out: int) -> _Split:
    """Hold out one fold of the prompts, those of the answers included.

    Raises:
        DataError: The file of answers is bad.
    """
    answers = [(prompt, trimmed(text)) for prompt, text in (read_answers(answers_file) if answers_file else [])]
    fold = folds([pair.prompt for pair in pairs] + [prompt for prompt, _ in answers], n_folds)
    return _Split(
        train=[pair for pair in pairs if fold[pair.prompt] != held_out],
        test=[pair for pair in pairs if fold[pair.prompt] == held_out],
        train_answers=[item for item in answers if fold[item[0]] != held_out],
        test_answers=[item for item in answers if fold[item[0]] == held_out],
    )


def _feature_weights(
    reward: RewardModel, base: Path, pairs: Sequence[Preference], answers: Sequence[Source], recipe: Recipe
) -> dict[str, float]:
    """Fit the feature weights on the pairs and on spoiled answers, encoded as in serving."""
    reader = RewardModel(reward.module, reward.tokenizer, name=reward.name, max_length_tokens=MAX_LENGTH_TOKENS)
    good = list(answers) or list({(pair.prompt, pair.chosen): None for pair in pairs})
    spoiled = auxiliary_groups(good, per_answer=len(KINDS), seed=recipe.seed)
    sample = random.Random(recipe.seed).sample(spoiled, min(MAX_MEASURED, len(spoiled)))
    return fit_weights(reader, str(base), human_groups(pairs), sample)


def measure_human(reward: RewardModel, pairs: Sequence[Preference]) -> dict[str, Any]:
    groups = human_groups(pairs)
    rewards = {
        (group.prompt, text): value
        for group, values in zip(groups, score_groups(reward, groups), strict=True)
        for text, value in zip(group.texts, values, strict=True)
    }
    return human_report(
        [ScoredPair(pair, rewards[pair.prompt, pair.chosen], rewards[pair.prompt, pair.rejected]) for pair in pairs]
    )


def measure_spoiled(
    reward: RewardModel, pairs: Sequence[Preference], answers: Sequence[Source], seed: int
) -> dict[str, Any]:
    """Measure the share of spoiled answers ranked below the good one, made from ``answers`` or else from the pairs."""
    good = list(answers) or list({(pair.prompt, pair.chosen): None for pair in pairs})
    groups = auxiliary_groups(good, per_answer=len(KINDS), seed=seed + 1)
    sample = random.Random(seed).sample(groups, min(MAX_MEASURED, len(groups)))
    return robustness_report(sample, score_groups(reward, sample))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
