"""Checkpoint folders: seal, find and discard them.

A folder is complete once it has its seal: a small file, written after everything else is on disk. A folder without a
seal, left by a killed run, is never read.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gateway.files import sync_file, sync_folder, write_atomically

SEAL_FILE = "sealed.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True, slots=True)
class Seal:
    """Facts of a complete checkpoint: its step of all ``steps``, tokens read and seconds spent so far."""

    step: int
    steps: int
    tokens: int
    seconds: float


def kept_steps(steps: int, checkpoints: int) -> list[int]:
    """Return the steps whose checkpoints are kept, evenly over the run, the last one included."""
    count = min(checkpoints, steps)
    return [-(-steps * k // count) for k in range(1, count + 1)]


def seal(output_dir: str, state: Any, base: str, seconds: float) -> None:
    """Sync the checkpoint of the state's step to disk, then seal it.

    Args:
        output_dir: The Trainer's.
        state: The Trainer's, at the step whose checkpoint was just written.
        base: The base's name for the adapter's configuration, in place of this machine's path.
        seconds: Time spent on the training so far.
    """
    folder = Path(output_dir) / f"checkpoint-{state.global_step}"
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    facts = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(facts | {"base_model_name_or_path": base}, indent=2, sort_keys=True), encoding="utf-8")
    (folder / "adapter_model.safetensors").chmod(0o644)  # training and serving are often different users
    for file in folder.rglob("*"):
        if file.is_file():
            sync_file(file)
    sync_folder(folder)
    stamp = Seal(state.global_step, state.max_steps, int(state.num_input_tokens_seen), round(seconds, 3))
    write_atomically(folder / SEAL_FILE, json.dumps(asdict(stamp)).encode())
    sync_folder(folder.parent)


def sealed(folder: Path) -> dict[int, Path]:
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and (path / SEAL_FILE).is_file()
    }
    return dict(sorted(found.items()))


def read_seal(folder: Path) -> Seal:
    return Seal(**json.loads((folder / SEAL_FILE).read_text(encoding="utf-8")))


def discard(folder: Path, keep: set[int]) -> None:
    """Remove every checkpoint of other steps, and incomplete ones."""
    for path in folder.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and not (int(match[1]) in keep and (path / SEAL_FILE).is_file()):
            # The seal goes first: an interrupted removal must not leave a folder that looks complete.
            (path / SEAL_FILE).unlink(missing_ok=True)
            shutil.rmtree(path)
