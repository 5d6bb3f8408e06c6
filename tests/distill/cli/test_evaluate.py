"""``python -m distill sample`` and ``evaluate`` from end to end: a TGI stub, MiniLM, two small adapters."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner, Result

from distill.__main__ import app
from distill.evaluation.samples import read_samples
from gateway.embedded.weights import minilm_folder
from tests.stubs.process import StubProcess

runner = CliRunner(env={"COLUMNS": "200"})


def run(*arguments: object) -> Result:
    return runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def stub_url() -> Iterator[str]:
    stub = StubProcess()
    stub.start()
    yield stub.url
    stub.stop()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"kind": kind, "prompt": f"Tell me about {topic}."} for kind, topic in (("list", "tea"), ("advice", "sleep"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two untrained adapters with different heads, so that their rewards differ."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("select", "judge")):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(str(minilm_folder()), num_labels=1)
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=1, target_modules=["query"])
        get_peft_model(base, config).save_pretrained(str(folder / name))
    return folder / "select", folder / "judge"


@pytest.fixture
def draws(tmp_path: Path, stub_url: str, prompts: Path) -> Path:
    path = tmp_path / "draws.jsonl"
    temperatures = ("--temperature", 0.5, "--temperature", 1.0)
    result = run("sample", "--out", path, "--prompts", prompts, "--draws", 4, *temperatures, "--url", stub_url)
    assert 0 == result.exit_code, result.output
    return path


def test_sampling_and_evaluating(draws: Path, adapters: tuple[Path, Path]) -> None:
    select, judge = adapters
    result = run("evaluate", "--draws", draws, "--adapter", select, "--judge", judge, "--n", 1, "--n", 4)
    assert 0 == result.exit_code, result.output
    assert "Best of n: 2 prompts × 4 samples" in result.output
    facts = json.loads(draws.with_suffix(".quality.json").read_bytes())
    assert [(0.5, 1), (0.5, 4), (1.0, 1), (1.0, 4)] == [(point["temperature"], point["n"]) for point in facts["points"]]
    assert {"1", "4"} == set(facts["best_temperatures"])
    assert facts["select_sha256"] != facts["judge_sha256"]


def test_sampling_again_adds_nothing(draws: Path, stub_url: str, prompts: Path) -> None:
    before = draws.read_bytes()
    temperatures = ("--temperature", 0.5, "--temperature", 1.0)
    result = run("sample", "--out", draws, "--prompts", prompts, "--draws", 4, *temperatures, "--url", stub_url)
    assert 0 == result.exit_code, result.output
    assert before == draws.read_bytes()


def test_the_demos_prompts_are_not_sampled(tmp_path: Path, stub_url: str) -> None:
    from gateway.demo import prompts

    path = tmp_path / "draws.jsonl"
    arguments = ("--count", 5, "--draws", 1, "--temperature", 1.0, "--url", stub_url)
    result = run("sample", "--out", path, *arguments)
    assert 0 == result.exit_code, result.output
    drawn = read_samples(path)
    assert 5 == len({sample.prompt.kind for sample in drawn})
    assert not {sample.prompt.text for sample in drawn} & {prompt.prompt for prompt in prompts.load()[:12]}


def test_a_model_does_not_judge_itself(draws: Path, adapters: tuple[Path, Path]) -> None:
    result = run("evaluate", "--draws", draws, "--adapter", adapters[0], "--judge", adapters[0])
    assert 2 == result.exit_code
    assert "proves nothing" in result.stderr


def test_what_is_missing_is_named(draws: Path, tmp_path: Path, adapters: tuple[Path, Path]) -> None:
    absent = tmp_path / "absent"
    for arguments, message in (
        (("evaluate", "--draws", absent, "--judge", adapters[1]), "absent cannot be read"),
        (("evaluate", "--draws", draws, "--adapter", adapters[0], "--judge", absent), "no adapter in"),
        (("sample", "--out", tmp_path / "new.jsonl", "--prompts", absent), "is not JSON lines"),
    ):
        result = run(*arguments)
        assert 2 == result.exit_code
        assert message in " ".join(result.stderr.split())


def test_n_cannot_exceed_the_samples_of_a_prompt(draws: Path, adapters: tuple[Path, Path]) -> None:
    result = run("evaluate", "--draws", draws, "--adapter", adapters[0], "--judge", adapters[1], "--n", 1, "--n", 5)
    assert 2 == result.exit_code
    assert "n = 5" in result.stderr
