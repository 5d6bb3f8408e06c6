"""Publish a checkpoint as an adapter, with the expected answers of its weight check.

The only part of a promotion that loads the base. A publication killed anywhere leaves nothing that looks like an
adapter; a second attempt gives the same one, because its name is the hash of its weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from distill.errors import PromotionError
from distill.promotion.adapter import (
    CONFIG_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    WEIGHT_CHECK_FILE,
    WEIGHTS_FILE,
    Adapter,
    BaseFacts,
    Manifest,
    adapters_in,
    file_sha256,
    read_config,
    read_weights,
)
from distill.promotion.gguf_lora import parts
from gateway.files import sync_folder, write_atomically

_HASH_DIGITS = 12
_UNFINISHED = ".unfinished-"

log = structlog.get_logger()


def publish(
    checkpoint: Path,
    adapters_dir: Path,
    *,
    model: str,
    run: str,
    n_allowed: int,
    n_base: int,
    rivals: Sequence[Adapter] = (),
    report: Path | None = None,
    created: datetime | None = None,
) -> Adapter:
    """Publish a checkpoint as an adapter; return the existing one if these weights were published before.

    Args:
        checkpoint: Folder with PEFT's ``adapter_model.safetensors`` and ``adapter_config.json``.
        adapters_dir: The folder of adapters; made when missing.
        model: The base, as in ``DISTILL_TRAINING__MODEL``.
        run: Name of the night's run directory.
        n_allowed: The N that the gate allowed.
        n_base: The N at which the base served before the first night.
        rivals: Adapters that might be served in its place by mistake (the one that serves now): the weight check
            distinguishes the new one from them, as from the base.
        report: The night's report, to copy into the folder.
        created: Time of publication; default: now.

    Raises:
        PromotionError: The checkpoint is malformed or does not fit the base.
        TrainingError: The base cannot be loaded.
    """
    adapters_dir.mkdir(parents=True, exist_ok=True)
    config = _canonical(read_config(checkpoint), model)
    digest = _digest(checkpoint, config)
    known = [folder for folder in adapters_in(adapters_dir) if folder.name.endswith(f"-{digest}")]
    if known:
        return Adapter.open(known[0])
    for left in adapters_dir.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    created = created or datetime.now(UTC)
    name = f"rft-{created:%Y%m%d}-{digest}"
    with tempfile.TemporaryDirectory(dir=adapters_dir, prefix=_UNFINISHED) as unfinished:
        folder = Path(unfinished) / name
        folder.mkdir()
        write_atomically(folder / WEIGHTS_FILE, (checkpoint / WEIGHTS_FILE).read_bytes())
        write_atomically(folder / CONFIG_FILE, config)
        if report is not None:
            write_atomically(folder / REPORT_FILE, report.read_bytes())
        base = _examine(folder, model, rivals)
        hashes = {path.name: file_sha256(path) for path in folder.iterdir()}
        manifest = Manifest(name, base, run, n_allowed, created.isoformat(timespec="seconds"), hashes, n_base)
        write_atomically(folder / MANIFEST_FILE, manifest.encode())
        for path in folder.iterdir():
            path.chmod(0o444)
        os.rename(folder, adapters_dir / name)
    sync_folder(adapters_dir)
    log.info("adapter_published", adapter=name, run=run, n_allowed=n_allowed)
    return Adapter.open(adapters_dir / name)


def _examine(folder: Path, model: str, rivals: Sequence[Adapter]) -> BaseFacts:
    """Check the weights against the base, and write the expected answers of the weight check."""
    from distill.promotion.expected_answers import compute_expected_answers
    from distill.training.base import load_base

    weights = read_weights(folder)
    base = load_base(model)
    shapes = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in base.model.state_dict().items()}
    _check_fit({name: tuple(tensor.shape) for name, tensor in weights.items()}, shapes, read_config(folder)["r"])
    if all(not np.any(tensor) for name, tensor in weights.items() if parts(name)[1] == "B"):
        raise PromotionError("the adapter changes nothing: every B matrix is zero")
    expected = compute_expected_answers(base, folder, {rival.name: rival.folder for rival in rivals})
    write_atomically(folder / WEIGHT_CHECK_FILE, expected.encode())
    facts = base.model.config
    return BaseFacts(
        name=base.name,
        kind=facts.model_type,
        layers=facts.num_hidden_layers,
        heads=facts.num_attention_heads,
        kv_heads=facts.num_key_value_heads,
    )


def _check_fit(adapter: dict[str, tuple[int, ...]], base: dict[str, tuple[int, ...]], rank: int) -> None:
    """Refuse tensors without a layer in the base, with another shape, or without the other matrix of the pair."""
    sides: dict[str, set[str]] = {}
    for name, shape in adapter.items():
        module, side = parts(name)
        if module not in base or len(base[module]) != 2:
            raise PromotionError(f"the adapter adapts {module}, but the base has no such linear layer")
        outputs, inputs = base[module]
        expected = (rank, inputs) if side == "A" else (outputs, rank)
        if shape != expected:
            raise PromotionError(f"{name} has the shape {shape}, not {expected}")
        sides.setdefault(module, set()).add(side)
    alone = sorted(module for module, found in sides.items() if len(found) < 2)
    if alone:
        raise PromotionError(f"the adapter has only one of the two matrices for {alone[0]}")


def _canonical(config: dict[str, Any], model: str) -> bytes:
    """Return the configuration in one order and without this machine's path: neither may change an adapter's name."""
    from distill.training.base import name_of

    ordered = {key: sorted(value) if isinstance(value, list) else value for key, value in config.items()}
    ordered["base_model_name_or_path"] = name_of(model)
    return (json.dumps(ordered, indent=2, sort_keys=True) + "\n").encode()


def _digest(checkpoint: Path, config: bytes) -> str:
    """Hash the weights and their scale, which decide what the adapter computes."""
    digest = hashlib.sha256(config)
    digest.update(bytes.fromhex(file_sha256(checkpoint / WEIGHTS_FILE)))
    return digest.hexdigest()[:_HASH_DIGITS]
