"""Adapters and their exports, on the tiny Llama: immutable, atomic, and with the same numbers in llama.cpp."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill.errors import PromotionError
from distill.evaluation.greedy import GreedyToken
from distill.promotion import weight_check
from distill.promotion.adapter import Adapter, adapters_in, check_name, read_config, read_weights
from distill.promotion.gguf_lora import export_gguf
from distill.promotion.publish import publish
from distill.promotion.weight_check import check_replicas
from gateway.backend.pool import BackendPool
from gateway.embedded.llama import LlamaServer
from gateway.settings import BackendSettings
from tests.distill.promotion.weights import random_checkpoint, save_checkpoint, tiny_gguf
from tests.distill.training.tiny import tiny_base

NIGHT = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Two adapters, the first a rival of the second."""
    folder = tmp_path_factory.mktemp("adapters")
    made: list[Adapter] = []
    for seed in (1, 2):
        checkpoint = random_checkpoint(folder / f"checkpoint-{seed}", base, seed=seed)
        made.append(publish_at(checkpoint, folder / "adapters", base, rivals=made[:1]))
    return made


@pytest.fixture(scope="module")
def server(base: Path, adapters: list[Adapter], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    folder = tmp_path_factory.mktemp("gguf")
    files = [export_gguf(adapter, folder) for adapter in adapters]
    model = tiny_gguf(base, folder / "base.gguf")
    with LlamaServer(model=model, adapters=files, slots=2, context_tokens=512, threads=1) as started:
        yield started


def publish_at(checkpoint: Path, folder: Path, base: Path, rivals: list[Adapter] | None = None) -> Adapter:
    return publish(
        checkpoint, folder, model=str(base), run="night-1", n_allowed=4, n_base=8, rivals=rivals or (), created=NIGHT
    )


def test_an_adapter_is_named_by_its_weights_and_read_only(adapters: list[Adapter]) -> None:
    first = adapters[0]
    assert first.name.startswith("rft-20261122-")
    assert first == Adapter.open(first.folder)
    assert {"night-1", 4} == {first.manifest.run, first.manifest.n_allowed}
    assert {0o444} == {path.stat().st_mode & 0o777 for path in first.folder.iterdir()}
    assert sorted(adapter.folder for adapter in adapters) == adapters_in(first.folder.parent)


def test_the_same_weights_are_the_same_adapter_at_any_time_and_place(
    adapters: list[Adapter], base: Path, tmp_path: Path
) -> None:
    """PEFT writes sets in any order, and paths of its own machine: neither changes the adapter."""
    weights, config = read_weights(adapters[0].folder), read_config(adapters[0].folder)
    again = save_checkpoint(tmp_path, weights, target_modules=config["target_modules"][::-1])
    folder = adapters[0].folder.parent
    (folder / ".unfinished-killed").mkdir()
    assert adapters[0] == publish(again, folder, model=str(base), run="night-2", n_allowed=2, n_base=8)


def test_llamacpp_computes_the_same_as_peft(server: LlamaServer, adapters: list[Adapter]) -> None:
    """In float32 all greedy tokens are the same: the order of q's and k's rows and alpha are right."""
    for adapter in adapters:
        (seen,) = asyncio.run(check_replicas(adapter, BackendSettings(kind="llamacpp", urls=(server.url,))))
        assert seen.tokens_expected == seen.tokens_followed
        assert [1.0] * len(seen.comparisons) == pytest.approx([one.position for one in seen.comparisons], abs=0.02)
        assert {1.0} == {one.votes for one in seen.comparisons}


@pytest.mark.parametrize("instead", ["base", "other"])
def test_other_weights_under_its_name_are_caught(
    server: LlamaServer, adapters: list[Adapter], instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = adapters
    answer = weight_check.answer_prompt
    served = None if instead == "base" else first.name

    async def other(pool: BackendPool, prompt: str, name: str | None) -> list[GreedyToken]:
        return await answer(pool, prompt, served)

    monkeypatch.setattr(weight_check, "answer_prompt", other)
    with pytest.raises(
        PromotionError, match=rf"other weights than {second.name}'s answer under its name at 127\.0\.0\.1:\d+: "
    ):
        asyncio.run(check_replicas(second, BackendSettings(kind="llamacpp", urls=(server.url,))))


def test_a_file_that_changed_is_not_served(adapters: list[Adapter], tmp_path: Path) -> None:
    name = adapters[0].name
    copied = tmp_path / name
    copied.mkdir()
    for path in adapters[0].folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert name == Adapter.open(copied).name
    for moved, message in ((tmp_path / "rft-20261122-00000000", "calls it"), (tmp_path / "none", "is not an adapter")):
        if "rft" in moved.name:
            os.rename(copied, moved)
        with pytest.raises(PromotionError, match=message):
            Adapter.open(moved)
    os.rename(tmp_path / "rft-20261122-00000000", copied)
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(PromotionError, match="is not the file that was published"):
        Adapter.open(copied)
    (copied / "adapter_config.json").unlink()
    with pytest.raises(PromotionError, match="cannot be read"):
        Adapter.open(copied)
    for content, message in (("[]", "not an adapter's manifest"), ("{", "not an adapter's manifest")):
        (copied / "manifest.json").write_text(content)
        with pytest.raises(PromotionError, match=message):
            Adapter.open(copied)


@pytest.mark.parametrize("name", ["rft-1", "../rft-20261122-01234567", "rft-20261122-0123456g", "base", ""])
def test_names_are_checked(name: str) -> None:
    with pytest.raises(PromotionError, match="not an adapter's name"):
        check_name(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "does not hold a LoRA"),
        ({"use_dora": True}, "LoRA with use_dora"),
        ({"modules_to_save": ["lm_head"]}, "LoRA with modules_to_save"),
        ({"r": 0}, "rank and alpha"),
    ],
)
def test_only_a_plain_lora_is_accepted(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(PromotionError, match=message):
        read_config(save_checkpoint(tmp_path, {"x": np.zeros(1, np.float32)}, **change))


def test_a_pickle_or_a_non_finite_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    with pytest.raises(PromotionError, match="cannot be read as safetensors"):
        read_weights(tmp_path)
    save_file({"x": np.array([np.nan], np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PromotionError, match="not finite"):
        read_weights(tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PromotionError, match="holds no tensor"):
        read_weights(tmp_path)


def test_tensors_must_fit_the_base(base: Path, tmp_path: Path) -> None:
    good = load_file(random_checkpoint(tmp_path / "good", base, seed=3) / "adapter_model.safetensors")
    key = next(iter(good))
    stem = key.rpartition(".lora_")[0]
    bad = {
        "has the shape": good | {f"{stem}.lora_A.weight": np.zeros((4, 5), np.float32)},
        "no such linear layer": good | {"base_model.model.lm_foot.lora_A.weight": np.zeros((4, 5), np.float32)},
        "only one of the two matrices": {
            name: value for name, value in good.items() if name != f"{stem}.lora_A.weight"
        },
        "is not a LoRA matrix": good | {"surprise": np.zeros((4, 5), np.float32)},
        "changes nothing": {name: value * ("lora_A" in name) for name, value in good.items()},
    }
    for message, weights in bad.items():
        with pytest.raises(PromotionError, match=message):
            publish_at(save_checkpoint(tmp_path / message, weights), tmp_path / "adapters", base)
    assert [] == os.listdir(tmp_path / "adapters")


def test_the_nights_report_is_copied(base: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text("<p>A night.")
    checkpoint = random_checkpoint(tmp_path / "checkpoint", base, seed=4)
    adapter = publish(checkpoint, tmp_path / "adapters", model=str(base), run="n", n_allowed=1, n_base=8, report=report)
    assert "<p>A night." == (adapter.folder / "report.html").read_text()
    assert "report.html" in json.loads((adapter.folder / "manifest.json").read_bytes())["sha256"]
