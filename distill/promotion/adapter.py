"""Published adapters: immutable folders ``rft-<date>-<hash of the weights>``, checked whenever they are opened.

A folder holds PEFT's weights and configuration, the expected answers of the weight check, the night's report if there
was one, and a manifest with the hash of each file. It is published atomically, and its files are read-only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from distill.errors import PromotionError

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
WEIGHT_CHECK_FILE = "canary.json"
REPORT_FILE = "report.html"
MANIFEST_FILE = "manifest.json"

_NAME = re.compile(r"rft-(\d{4}-\d{2}-\d{2}|\d{8})-[0-9a-f]{8,64}")
_FILES = frozenset({WEIGHTS_FILE, CONFIG_FILE, WEIGHT_CHECK_FILE, REPORT_FILE})
_NEEDED = frozenset({WEIGHTS_FILE, CONFIG_FILE, WEIGHT_CHECK_FILE})
_VERSION = 1


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """Facts of the base: transformers' model_type (``kind``), the numbers of layers and attention heads."""

    name: str
    kind: str
    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """An adapter's origin and hashes.

    ``run`` names the night's run directory, ``n_allowed`` is the N that the gate allowed it, ``created`` is ISO 8601 in
    UTC, ``sha256`` has the hash of each file except the manifest. ``n_base`` is the N at which the base served before
    the first of the nights that led here: every night must keep that quality.
    """

    name: str
    base: BaseFacts
    run: str
    n_allowed: int
    created: str
    sha256: dict[str, str]
    n_base: int
    version: int = _VERSION

    def encode(self) -> bytes:
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published adapter whose files are as they were published."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the manifest, and check every file against it.

        Raises:
            PromotionError: It is not an adapter, or a file was changed after publication.
        """
        manifest = _read_manifest(folder)
        check_name(manifest.name)
        if manifest.name != folder.name:
            raise PromotionError(f"{folder}: its manifest calls it {manifest.name}")
        for file, expected in manifest.sha256.items():
            if file_sha256(folder / file) != expected:
                raise PromotionError(f"{folder / file} is not the file that was published")
        return cls(folder, manifest)


def check_name(name: str) -> None:
    """Refuse a name without the form of an adapter's: names become paths and command arguments.

    Raises:
        PromotionError: The name has another form.
    """
    if not _NAME.fullmatch(name):
        raise PromotionError(f"{name!r} is not an adapter's name (rft-<date>-<hash>)")


def adapter_named(name: str, folder: Path) -> Adapter:
    """Open the published adapter of this name, which may come from a policy: anyone who writes to Redis can set it.

    Raises:
        PromotionError: The name has another form (it could lead out of the folder), or the adapter cannot be opened.
    """
    check_name(name)
    return Adapter.open(folder / name)


def adapters_in(folder: Path) -> list[Path]:
    """Return the folders of published adapters, by name, without the remains of killed publications."""
    return sorted(path for path in folder.glob("rft-*") if _NAME.fullmatch(path.name) and path.is_dir())


def read_config(folder: Path) -> dict[str, Any]:
    """Read PEFT's configuration of a plain LoRA.

    Raises:
        PromotionError: It cannot be read, or not every backend can serve it.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise PromotionError(f"{folder / CONFIG_FILE} cannot be read") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise PromotionError(f"{folder} does not hold a LoRA")
    unserved = {"use_dora": False, "bias": "none", "modules_to_save": None, "fan_in_fan_out": False, "lora_bias": False}
    unserved |= {"rank_pattern": {}, "alpha_pattern": {}, "layer_replication": None, "trainable_token_indices": None}
    wrong = sorted(key for key, plain in unserved.items() if config.get(key) not in (plain, None))
    if wrong:
        raise PromotionError(f"{folder}: not every backend serves a LoRA with {', '.join(wrong)}")
    if not all(isinstance(config.get(key), int | float) and config[key] > 0 for key in ("r", "lora_alpha")):
        raise PromotionError(f"{folder}: rank and alpha must be above 0")
    return config


def read_weights(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Read PEFT's tensors by name, from safetensors only: never a pickle.

    Raises:
        PromotionError: There are none, they cannot be read, or one is not finite.
    """
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise PromotionError(f"{folder / WEIGHTS_FILE} cannot be read as safetensors") from error
    if not weights:
        raise PromotionError(f"{folder / WEIGHTS_FILE} holds no tensor")
    for name, tensor in weights.items():
        if not np.isfinite(tensor).all():
            raise PromotionError(f"{folder / WEIGHTS_FILE}: {name} holds numbers that are not finite")
    return weights


def file_sha256(path: Path) -> str:
    """Return the hash of a file, in hexadecimal.

    Raises:
        PromotionError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PromotionError(f"{path} cannot be read: {os.strerror(error.errno or 0)}") from error


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    try:
        fields = json.loads(path.read_bytes())
        manifest = Manifest(**fields | {"base": BaseFacts(**fields["base"])})
        listed = set(manifest.sha256)
    except OSError as error:
        raise PromotionError(f"{folder} is not an adapter: its {MANIFEST_FILE} cannot be read") from error
    except (ValueError, TypeError, KeyError) as error:
        raise PromotionError(f"{path} is not an adapter's manifest") from error
    if manifest.version != _VERSION or not _NEEDED <= listed <= _FILES:
        raise PromotionError(f"{path} is not a manifest of this version")
    return manifest
