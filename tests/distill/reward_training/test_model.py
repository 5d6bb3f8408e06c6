"""``python -m distill reward`` from end to end, on a tiny random encoder with MiniLM's tokenizer."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel
from typer.testing import CliRunner

from distill.__main__ import app
from distill.reward_training.model import Recipe, score_groups, train
from distill.reward_training.preferences import Group, Preference
from gateway.embedded.weights import minilm_folder
from gateway.reward.features import FEATURES
from gateway.reward.model import RewardModel
from gateway.reward.weights import ADAPTER_FILE

TOPICS = ("bread", "bicycles", "volcanoes", "violins", "whales", "gardens", "maps", "clocks", "rivers", "bridges")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 32 with random weights: trains in seconds."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm_folder() / name, folder / name)
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Ten hand-written prompts with a helpful and a lazy answer each, either of them the longer one."""
    rows = []
    for index, topic in enumerate(TOPICS):
        good = f"Most people who know {topic} well began small, asked many questions, and kept at it for years."
        lazy = f"I do not know about {topic}, sorry." + " I really cannot say, so please ask someone else." * (
            index % 3
        )
        rows.append(
            {
                "prompt": [{"role": "user", "content": f"How do I learn about {topic} ({index})?"}],
                "chosen": [{"role": "assistant", "content": good}],
                "rejected": [{"role": "assistant", "content": lazy}],
                "source": "ours",
                "license": "Apache-2.0",
            }
        )
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["reward", *map(str, arguments)], catch_exceptions=False)


def test_the_command_writes_an_adapter_that_the_gateway_loads_and_its_metrics(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(
        json.dumps(
            {
                "prompt": [{"role": "user", "content": "What is glass made of?"}],
                "text": "Glass is made of sand, soda and lime, melted together in a furnace at great heat.",
            }
        )
        + "\n",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    result = run(
        pairs, "--out", out, "--base", base, "--answers", answers, "--folds", 2, "--threads", 1, "--name", "our-judge"
    )
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in out.iterdir()) == [
        "adapter_config.json",
        ADAPTER_FILE,
        "metrics.json",
    ]
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    trained = metrics["data"]["trained_on"]["ours"]
    assert trained + metrics["human"]["all"]["n"] == len(TOPICS)
    assert metrics["human"]["by_source"].keys() == {"ours"}
    assert metrics["spoiled"]["all"]["n"] > 0
    assert json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == str(base)
    served = RewardModel.load(str(base), adapter=out, device="cpu")
    assert served.name == metrics["name"] == "our-judge"
    assert metrics["signals"].keys() == {*FEATURES, "relevance"}
    assert len(served.score([served.encode([{"role": "user", "content": "Hi"}], "Hello")])) == 1


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(base: Path, pairs: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        result = run(
            pairs, "--out", tmp_path / name, "--base", base, "--folds", 2, "--epochs", 1, "--threads", 1, "--seed", seed
        )
        assert result.exit_code == 0, result.output
        weights.append(load_file(tmp_path / name / ADAPTER_FILE))
    first, again, other = weights
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in first.items())


def margin_after_training(base: Path, doubt: float) -> float:
    """Difference of rewards of an unseen good and bad answer if every label prefers one word."""
    learned = [
        Preference((("user", f"question {i}"),), f"yes certainly {w}", f"no never {w}", "s", "l")
        for i, w in enumerate(TOPICS * 4)
    ]
    recipe = Recipe(
        epochs=12,
        learning_rate=3e-3,
        top_layers=2,
        spoiled_per_answer=0,
        batch_tokens=512,
        human_weight=1.0,
        human_doubt=doubt,
    )
    losses: list[float] = []
    reward = train(str(base), learned, [], recipe, lambda done, total, loss: losses.append(loss))
    ((better, worse),) = score_groups(
        reward, [Group((("user", "another question"),), ["yes certainly lanterns", "no never lanterns"])]
    )
    assert losses[-1] < losses[0]
    return better - worse


def test_training_learns_the_pairs_up_to_the_doubt_in_their_labels(base: Path) -> None:
    """Labels of which a fifth may be wrong are worth log(.8/.2) = 1.4 logits, for any number of epochs."""
    assert margin_after_training(base, doubt=0.0) > 2.5
    assert 0.7 < margin_after_training(base, doubt=0.2) < 2.1


def test_layers_below_the_adapted_ones_do_not_change(base: Path, pairs: Path, tmp_path: Path) -> None:
    run(pairs, "--out", tmp_path / "o", "--base", base, "--folds", 2, "--epochs", 1, "--threads", 1, "--top-layers", 1)
    names = load_file(tmp_path / "o" / ADAPTER_FILE).keys()
    assert any(".layer.1." in name for name in names)
    assert not any(".layer.0." in name for name in names)
    assert any("classifier.weight" in name for name in names)


def test_a_bad_row_ends_the_command_with_its_line_number(base: Path, pairs: Path, tmp_path: Path) -> None:
    with pairs.open("a", encoding="utf-8") as file:
        file.write('{"prompt": "not a list of messages"}\n')
    result = run(pairs, "--out", tmp_path / "out", "--base", base)
    assert result.exit_code == 2
    assert "line 11" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_fold_that_does_not_exist_or_is_empty_is_refused(base: Path, pairs: Path, tmp_path: Path) -> None:
    assert run(pairs, "--out", tmp_path / "out", "--folds", 2, "--fold", 2).exit_code == 2
    pairs.write_text(pairs.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    result = run(pairs, "--out", tmp_path / "out", "--base", base, "--folds", 2)
    assert result.exit_code == 2
    assert "one side is empty" in " ".join(result.output.split())


def test_a_missing_base_is_named(pairs: Path, tmp_path: Path) -> None:
    result = run(pairs, "--out", tmp_path / "out", "--base", tmp_path / "nowhere", "--folds", 2)
    assert result.exit_code == 2
    assert "does not exist" in " ".join(result.output.split())


def test_a_stopped_training_leaves_nothing_behind(
    base: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM during writing: the folder holds no partial adapter."""

    def stop(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("distill.reward_training.train.measure_human", stop)
    result = run(pairs, "--out", tmp_path / "out", "--base", base, "--folds", 2, "--epochs", 1, "--threads", 1)
    assert result.exit_code == 143
    assert list((tmp_path / "out").iterdir()) == []
