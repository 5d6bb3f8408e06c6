"""A published adapter is opened only if no file has changed, and only a plain LoRA is accepted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from distill.errors import PromotionError
from distill.promotion.adapter import Adapter, BaseFacts, Manifest, adapters_in, file_sha256, read_config, read_weights

NAME = "rft-2026-11-22-0123abcd"
FILES = ("adapter_model.safetensors", "adapter_config.json", "canary.json")
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A published adapter."""
    folder = tmp_path / NAME
    folder.mkdir()
    save_file({"a": np.ones(3, dtype=np.float32)}, folder / FILES[0])
    (folder / FILES[1]).write_text(json.dumps(PLAIN))
    (folder / FILES[2]).write_text("{}")
    publish(folder, manifest_of(folder))
    return folder


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    base = BaseFacts("base", "llama", layers=2, heads=4, kv_heads=1)
    return replace(Manifest(NAME, base, "run-1", 4, "2026-11-22T00:00:00+00:00", hashes, 8), **changes)


def publish(folder: Path, manifest: Manifest) -> None:
    (folder / "manifest.json").write_bytes(manifest.encode())


def test_a_published_adapter_is_read_as_written(folder: Path) -> None:
    adapter = Adapter.open(folder)
    assert (NAME, manifest_of(folder)) == (adapter.name, adapter.manifest)
    assert {"a": [1.0, 1.0, 1.0]} == {name: tensor.tolist() for name, tensor in read_weights(adapter.folder).items()}
    assert PLAIN == read_config(adapter.folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", ["changed", "gone"])
def test_a_changed_file_is_named(folder: Path, file: str, change: str) -> None:
    if change == "gone":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    with pytest.raises(PromotionError, match=f"{file} {'cannot be read' if change == 'gone' else 'is not the file'}"):
        Adapter.open(folder)


def test_a_folder_of_another_name_is_refused(folder: Path) -> None:
    with pytest.raises(PromotionError, match=f"its manifest calls it {NAME}"):
        Adapter.open(folder.rename(folder.with_name("rft-2026-11-23-0123abcd")))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"version": 2},
        {"sha256": {}},
        {"sha256": dict.fromkeys(FILES[1:], "0")},
        {"sha256": dict.fromkeys([*FILES, "other.bin"], "0")},
    ],
    ids=str,
)
def test_a_manifest_of_another_version_or_of_other_files_is_refused(folder: Path, change: dict[str, Any]) -> None:
    publish(folder, manifest_of(folder, **change))
    with pytest.raises(PromotionError, match="is not a manifest of this version"):
        Adapter.open(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"base": 5}', b"\xff"])
def test_a_malformed_manifest_is_refused(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(PromotionError, match=r"manifest\.json is not an adapter's manifest"):
        Adapter.open(folder)


def test_a_manifest_is_json_with_every_field(folder: Path) -> None:
    manifest = manifest_of(folder)
    assert json.loads(manifest.encode()) == {**asdict(manifest), "version": 1}
    assert manifest.encode().endswith(b"}\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"use_dora": False, "bias": "none", "rank_pattern": {}, "modules_to_save": None}, None),
        ({"bias": None, "fan_in_fan_out": None, "rank_pattern": None}, None),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q": 8}}, "alpha_pattern"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"use_dora": True, "bias": "all"}, "bias, use_dora"),
        ({"peft_type": "IA3"}, "does not hold a LoRA"),
        ({"r": 1, "lora_alpha": 0.5}, None),
        ({"r": 0}, "rank and alpha must be above 0"),
        ({"lora_alpha": 0}, "rank and alpha must be above 0"),
        ({"r": -1}, "rank and alpha must be above 0"),
        ({"lora_alpha": "8"}, "rank and alpha must be above 0"),
        ({"r": None}, "rank and alpha must be above 0"),
    ],
    ids=str,
)
def test_only_a_plain_lora_is_served(folder: Path, changes: dict[str, Any], message: str | None) -> None:
    config = PLAIN | changes
    (folder / FILES[1]).write_text(json.dumps(config))
    if message is None:
        assert config == read_config(folder)
    else:
        with pytest.raises(PromotionError, match=f"{message}$"):
            read_config(folder)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff"])
def test_a_malformed_config_is_refused(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / FILES[1]).unlink()
    else:
        (folder / FILES[1]).write_bytes(content)
    with pytest.raises(PromotionError, match=r"adapter_config\.json cannot be read|does not hold a LoRA"):
        read_config(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no tensor"),
        ({"a": [1.0], "b": [1.0, float("nan")]}, "b holds numbers that are not finite"),
        ({"a": [float("inf")]}, "a holds numbers that are not finite"),
    ],
)
def test_invalid_weights_are_refused(folder: Path, tensors: dict[str, list[float]], message: str) -> None:
    save_file({name: np.array(values, dtype=np.float32) for name, values in tensors.items()}, folder / FILES[0])
    with pytest.raises(PromotionError, match=message):
        read_weights(folder)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", None])
def test_what_is_not_safetensors_is_not_read(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / FILES[0]).unlink()
    else:
        (folder / FILES[0]).write_bytes(content)
    with pytest.raises(PromotionError, match="cannot be read as safetensors"):
        read_weights(folder)


def test_only_folders_with_an_adapters_name_are_adapters(tmp_path: Path) -> None:
    for name in ("rft-2026-11-22-0123abce", NAME, "rft-20261122-0123abcd", "rft-2026-11-22-short", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "rft-2026-11-22-0123abcf").write_text("a file")
    names = [NAME, "rft-2026-11-22-0123abce", "rft-20261122-0123abcd"]
    assert names == [path.name for path in adapters_in(tmp_path)]


def test_a_files_hash_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hashlib.sha256(b"abc").hexdigest() == file_sha256(tmp_path / "a")
    with pytest.raises(PromotionError, match="cannot be read: No such file"):
        file_sha256(tmp_path / "b")
