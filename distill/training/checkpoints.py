"""Checkpoint folders: which of them are whole, which are kept, and where a run goes on.

A folder is whole once it is sealed: a small file, written last and only when everything before it is on disk. One
that a kill left without its seal is never read again.
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
    """What a whole checkpoint says of itself."""

    step: int
    steps: int
    tokens: int
    seconds: float


def kept_steps(steps: int, checkpoints: int) -> list[int]:
    """Steps whose checkpoints stay, evenly over the run; the last step is one of them."""
    count = min(checkpoints, steps)
    return [-(-steps * k // count) for k in range(1, count + 1)]


def seal(output_dir: str, state: Any, base: str, seconds: float) -> None:
    """Put the checkpoint of the state's step on disk for sure, and say that it is whole.

    Args:
        output_dir: The Trainer's.
        state: The Trainer's, at the step whose checkpoint was just written.
        base: What the adapter calls its base model, instead of this machine's path to it.
        seconds: Time spent on the training so far.
    """
    folder = Path(output_dir) / f"checkpoint-{state.global_step}"
    (folder / "README.md").unlink(missing_ok=True)
    config = folder / "adapter_config.json"
    facts = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(facts | {"base_model_name_or_path": base}, indent=2, sort_keys=True), encoding="utf-8")
    (folder / "adapter_model.safetensors").chmod(0o644)  # whoever trains is seldom the user who serves
    for file in folder.rglob("*"):
        if file.is_file():
            sync_file(file)
    sync_folder(folder)
    stamp = Seal(state.global_step, state.max_steps, int(state.num_input_tokens_seen), round(seconds, 3))
    write_atomically(folder / SEAL_FILE, json.dumps(asdict(stamp)).encode())
    sync_folder(folder.parent)


def sealed(folder: Path) -> dict[int, Path]:
    """Whole checkpoints by step, ascending."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and (path / SEAL_FILE).is_file()
    }
    return dict(sorted(found.items()))


def read_seal(folder: Path) -> Seal:
    """What the whole checkpoint says of itself."""
    return Seal(**json.loads((folder / SEAL_FILE).read_text(encoding="utf-8")))


def discard(folder: Path, keep: set[int]) -> None:
    """Remove every checkpoint of other steps, and the remains of half-written ones."""
    for path in folder.glob("checkpoint-*"):
        match = _NAME.fullmatch(path.name)
        if match and not (int(match[1]) in keep and (path / SEAL_FILE).is_file()):
            # The seal goes first: a removal cut short must not leave a folder that looks whole.
            (path / SEAL_FILE).unlink(missing_ok=True)
            shutil.rmtree(path)
