"""Train a reward model from preference pairs: LoRA and a head over a small encoder or decoder, Bradley–Terry loss.

The weights of text features (``distill.reward_training.features``) are added to its logit. A small backbone overfits a
thousand human pairs, so by default they train the feature weights alone, and LoRA is trained to distinguish good
answers from spoiled ones.

A plain loop and not TRL's RewardTrainer, which takes a chat template and one (chosen, rejected) pair a row: here the
backbone reads prompt and answer as a pair, and all answers to one prompt share a batch, so that each is encoded once
however often it is compared (half the time on two cores).

Source: Bradley and Terry 1952; the loss as in Ouyang et al. 2022 (2203.02155), equation 1.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from distill.errors import DataError
from distill.reward_training.preferences import Group, Preference, human_groups
from distill.reward_training.spoil import Source, auxiliary_groups
from gateway.reward.model import EncodedPair, RewardModel
from gateway.reward.weights import ADAPTER_FILE, FEATURES_KEY, HEADS, NAME_KEY, quiet_transformers

CONFIG_FILE = "adapter_config.json"
HEAD_RATE = 5.0
SLICE_TEXTS = 8


@dataclass(frozen=True, slots=True)
class Recipe:
    """All hyperparameters; metrics.json stores them by these names."""

    epochs: int = 1
    learning_rate: float = 1e-3
    rank: int = 16
    top_layers: int = 4
    max_length_tokens: int = 160
    batch_tokens: int = 2560
    spoiled_per_answer: int = 4
    human_weight: float = 0.0
    human_doubt: float = 0.0
    signals: bool = True
    lora_share: float = 0.15
    seed: int = 0


Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, all steps, and the step's loss."""


def train(
    base: str,
    pairs: Sequence[Preference],
    answers: Sequence[Source],
    recipe: Recipe,
    progress: Progress = lambda done, total, loss: None,
) -> RewardModel:
    """Train a reward model over ``base`` on human pairs and on spoiled versions of good answers.

    Args:
        base: Folder of the backbone; its weights do not change.
        pairs: Human preferences.
        answers: Coherent answers to spoil, (prompt, text); the pairs' own preferred answers are added.
        recipe: The hyperparameters. Same recipe, data and machine: same weights.
        progress: Called after every step.
    """
    random.seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    model = _adapted(base, recipe)
    reward = RewardModel(
        model, AutoTokenizer.from_pretrained(base), name=base, max_length_tokens=recipe.max_length_tokens
    )
    epochs = [_epoch(reward, pairs, answers, recipe, epoch) for epoch in range(recipe.epochs)]
    total = sum(map(len, epochs))
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe.learning_rate))
    # Dropout stays off: over a few epochs of LoRA it only slows learning, and on a CPU each step by a quarter.
    model.eval()
    done = 0
    for batches in epochs:
        mean_weight = sum(batch.weight for batch in batches) / len(batches)
        for batch in batches:
            for settings in optimizer.param_groups:
                settings["lr"] = settings["peak"] * _schedule(done / total)
            loss = batch.loss(reward) / mean_weight
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            progress(done, total, float(loss.detach()) * mean_weight / batch.weight)
    return reward


def save(
    reward: RewardModel,
    folder: Path,
    base_name: str,
    *,
    name: str = "",
    features: Mapping[str, float] | None = None,
    lora_share: float = 1.0,
) -> None:
    """Write the adapter: LoRA and head as float16 safetensors, half the size; name and feature weights in the header.

    Args:
        reward: The trained model.
        folder: An existing folder.
        base_name: The backbone's name in the configuration.
        name: The name of backbone and adapter together; empty: from their folders.
        features: The weight of each text feature.
        lora_share: The factor of the head's logit in the sum with the features.
    """
    with tempfile.TemporaryDirectory(dir=folder) as written:
        reward.module.save_pretrained(written, safe_serialization=True)
        weights = {name: tensor.half().contiguous() for name, tensor in load_file(Path(written, ADAPTER_FILE)).items()}
        config = json.loads(Path(written, CONFIG_FILE).read_text(encoding="utf-8"))
    for key, tensor in weights.items():
        if key.split(".")[-2] in HEADS:
            weights[key] = tensor * lora_share
    header = {"format": "pt"} | ({NAME_KEY: name} if name else {})
    header |= {FEATURES_KEY: json.dumps(dict(features))} if features else {}
    save_file(weights, folder / ADAPTER_FILE, metadata=header)
    (folder / ADAPTER_FILE).chmod(0o644)  # training and serving are often different users
    config["base_model_name_or_path"] = base_name
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def score_groups(reward: RewardModel, groups: Sequence[Group], *, batch_tokens: int = 8192) -> list[list[float]]:
    encoded = [(g, t, reward.encode(group.messages, text)) for g, group in enumerate(groups)
               for t, text in enumerate(group.texts)]  # fmt: skip
    encoded.sort(key=lambda item: item[2].length)
    rewards = [[0.0] * len(group.texts) for group in groups]
    for chunk in _chunks(encoded, batch_tokens, lambda item: [item[2]]):
        for (g, t, _), value in zip(chunk, reward.score([item[2] for item in chunk]), strict=True):
            rewards[g][t] = value
    return rewards


@dataclass(frozen=True, slots=True)
class _Batch:
    """Encoded texts and their comparisons."""

    texts: list[EncodedPair]
    better: list[int]
    worse: list[int]
    weights: list[float]
    doubts: list[float]

    @property
    def weight(self) -> float:
        return sum(self.weights)

    def loss(self, reward: RewardModel) -> torch.Tensor:
        """Sum w · (−(1 − ε) log σ(m) − ε log σ(−m)), where m = r_better − r_worse and ε is the label's doubt."""
        rewards = self._rewards(reward)
        margins = rewards[self.better] - rewards[self.worse]
        weights = torch.tensor(self.weights, device=margins.device)
        doubts = torch.tensor(self.doubts, device=margins.device)
        logsigmoid = torch.nn.functional.logsigmoid
        return -(weights * ((1 - doubts) * logsigmoid(margins) + doubts * logsigmoid(-margins))).sum()

    def _rewards(self, reward: RewardModel) -> torch.Tensor:
        """Return rewards in the texts' order, computed for a few texts of similar length at a time: less padding."""
        order = sorted(range(len(self.texts)), key=lambda place: self.texts[place].length)
        slices = [order[start : start + SLICE_TEXTS] for start in range(0, len(order), SLICE_TEXTS)]
        rewards = torch.cat([reward.logits([self.texts[place] for place in part]) for part in slices])
        return rewards[torch.tensor(order).argsort().to(rewards.device)]


def _adapted(base: str, recipe: Recipe) -> Any:
    if not Path(base, "config.json").is_file():
        raise DataError(f"base model folder {base} does not exist or has no config.json")
    config = AutoConfig.from_pretrained(base, num_labels=1)
    with quiet_transformers():  # it warns that the head is new
        model = AutoModelForSequenceClassification.from_pretrained(base, config=config, use_safetensors=True)
    return get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=recipe.rank,
            lora_alpha=2 * recipe.rank,
            target_modules=_linear_layers(model, config.num_hidden_layers - recipe.top_layers),
        ),
    )


def _parameter_groups(model: torch.nn.Module, peak: float) -> list[dict[str, Any]]:
    """Return LoRA's parameters at the peak rate, and those of the head, which is new, at a multiple of it."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    head = [parameter for name, parameter in trained if "modules_to_save" in name]
    lora = [parameter for name, parameter in trained if "modules_to_save" not in name]
    return [{"params": lora, "peak": peak}, {"params": head, "peak": peak * HEAD_RATE, "weight_decay": 0.0}]


def _linear_layers(model: torch.nn.Module, first_layer: int) -> list[str]:
    """Return every linear layer from ``first_layer`` on, and those above all layers (a pooler), without the head.

    Lower layers need no gradient, which halves the time on a CPU.
    """
    names = []
    for name, module in model.named_modules():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if isinstance(module, torch.nn.Linear) and name not in HEADS and (not numbers or numbers[0] >= first_layer):
            names.append(name)
    return names


def _epoch(
    reward: RewardModel, pairs: Sequence[Preference], answers: Sequence[Source], recipe: Recipe, epoch: int
) -> list[_Batch]:
    """Return an epoch's batches: the human pairs, and newly spoiled answers."""
    seed = recipe.seed * 1000 + epoch
    good = list({(pair.prompt, pair.chosen): None for pair in pairs}) + list(answers)
    groups = human_groups(pairs, recipe.human_doubt, recipe.human_weight) if recipe.human_weight else []
    groups += auxiliary_groups(good, per_answer=recipe.spoiled_per_answer, seed=seed)
    if not groups:
        raise DataError("nothing to train on")
    rng = random.Random(seed)
    rng.shuffle(groups)
    encoded = [(group, [reward.encode(group.messages, text) for text in group.texts]) for group in groups]
    encoded.sort(key=lambda item: max(text.length for text in item[1]) * rng.uniform(0.85, 1.15))
    batches = [_batched(chunk) for chunk in _chunks(encoded, recipe.batch_tokens, lambda item: item[1])]
    rng.shuffle(batches)
    return batches


def _batched(chunk: Sequence[tuple[Group, list[EncodedPair]]]) -> _Batch:
    batch = _Batch([], [], [], [], [])
    for group, texts in chunk:
        start = len(batch.texts)
        batch.texts.extend(texts)
        for comparison in group.comparisons:
            batch.better.append(start + comparison.better)
            batch.worse.append(start + comparison.worse)
            batch.weights.append(comparison.weight)
            batch.doubts.append(comparison.doubt)
    return batch


def _chunks(items: Sequence[Any], batch_tokens: int, texts: Callable[[Any], list[EncodedPair]]) -> Iterator[list[Any]]:
    """Yield consecutive items whose texts, padded to the longest, fit the budget; an item is never split."""
    chunk: list[Any] = []
    count = width = 0
    for item in items:
        own = texts(item)
        widest = max(width, *(text.length for text in own))
        if chunk and widest * (count + len(own)) > batch_tokens:
            yield chunk
            chunk, count, widest = [], 0, max(text.length for text in own)
        chunk.append(item)
        count, width = count + len(own), widest
    if chunk:
        yield chunk


def _schedule(share_done: float, warm_up: float = 0.06) -> float:
    """Return the learning rate as a share of its peak: a linear rise, then half a cosine."""
    return (
        share_done / warm_up if share_done < warm_up else 0.5 * (1 + cos(pi * (share_done - warm_up) / (1 - warm_up)))
    )
