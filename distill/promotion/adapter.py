"""Adapters are immutable: a folder ``rft-<date>-<hash of the weights>``, checked whenever it is opened.

It holds PEFT's weights and configuration, what the canary must see (``distill.promotion.canary``), the night's report
where there was one, and a manifest with the hash of each. The folder appears whole or not at all, and its files are
read-only: another night's weights are another adapter.
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
CANARY_FILE = "canary.json"
REPORT_FILE = "report.html"
MANIFEST_FILE = "manifest.json"

_NAME = re.compile(r"rft-(\d{4}-\d{2}-\d{2}|\d{8})-[0-9a-f]{8,64}")
_FILES = frozenset({WEIGHTS_FILE, CONFIG_FILE, CANARY_FILE, REPORT_FILE})
_NEEDED = frozenset({WEIGHTS_FILE, CONFIG_FILE, CANARY_FILE})
_VERSION = 1


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What must be known of the base without loading it.

    ``kind`` is transformers' model_type; the numbers are layers and attention heads.
    """

    name: str
    kind: str
    layers: int
    heads: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where an adapter comes from.

    ``run`` names the night's run directory, ``n_allowed`` is the N that the gate allowed it, ``created`` is ISO 8601 in
    UTC, ``sha256`` has the hash of each file beside the manifest. ``n_base`` is the N at which the base served before
    the first of the nights that led here: the quality that none of them may lose.
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
        """As JSON for people and programs."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, slots=True)
class Adapter:
    """A published adapter whose files are as they were published."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        """By which policies, records and backends know it."""
        return self.manifest.name

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the manifest, and check every file against it.

        Raises:
            PromotionError: It is no adapter, or not the one that was published; in words.
        """
        manifest = _read_manifest(folder)
        check_name(manifest.name)
        if manifest.name != folder.name:
            raise PromotionError(f"{folder}: its manifest calls it {manifest.name}")
        for file, expected in manifest.sha256.items():
            if file_sha256(folder / file) != expected:
                raise PromotionError(f"{folder / file} is not the file that was published")
        return cls(folder, manifest)

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """PEFT's tensors by name.

        Raises:
            PromotionError: They cannot be read.
        """
        return read_weights(self.folder)

    def config(self) -> dict[str, Any]:
        """PEFT's configuration.

        Raises:
            PromotionError: It cannot be read, or holds what this project does not serve.
        """
        return read_config(self.folder)


def check_name(name: str) -> None:
    """Refuse a name that is no adapter's: names become paths and command arguments.

    Raises:
        PromotionError: It is none.
    """
    if not _NAME.fullmatch(name):
        raise PromotionError(f"{name!r} is no adapter's name (rft-<date>-<hash>)")


def adapter_named(name: str, folder: Path) -> Adapter:
    """The published adapter of this name; the name may come from a policy, which anyone who writes to Redis can set.

    Raises:
        PromotionError: The name is none, so that it could lead out of the folder, or the adapter cannot be opened.
    """
    check_name(name)
    return Adapter.open(folder / name)


def adapters_in(folder: Path) -> list[Path]:
    """Folders of published adapters, by name; what a killed publication left is none."""
    return sorted(path for path in folder.glob("rft-*") if _NAME.fullmatch(path.name) and path.is_dir())


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of a plain LoRA.

    Raises:
        PromotionError: It cannot be read, or is something that not every backend serves.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError) as error:
        raise PromotionError(f"{folder / CONFIG_FILE} cannot be read") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise PromotionError(f"{folder} holds no LoRA")
    unserved = {"use_dora": False, "bias": "none", "modules_to_save": None, "fan_in_fan_out": False, "lora_bias": False}
    unserved |= {"rank_pattern": {}, "alpha_pattern": {}, "layer_replication": None, "trainable_token_indices": None}
    wrong = sorted(key for key, plain in unserved.items() if config.get(key) not in (plain, None))
    if wrong:
        raise PromotionError(f"{folder}: only a plain LoRA is served everywhere, without {', '.join(wrong)}")
    if not all(isinstance(config.get(key), int | float) and config[key] > 0 for key in ("r", "lora_alpha")):
        raise PromotionError(f"{folder}: rank and alpha must be above 0")
    return config


def read_weights(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """PEFT's tensors by name; safetensors only, never a pickle.

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
    """Hash of a file, in hexadecimal.

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
        raise PromotionError(f"{folder} is no adapter: it has no {MANIFEST_FILE} that can be read") from error
    except (ValueError, TypeError, KeyError) as error:
        raise PromotionError(f"{path} is no adapter's manifest") from error
    if manifest.version != _VERSION or not _NEEDED <= listed <= _FILES:
        raise PromotionError(f"{path} is not a manifest of this version")
    return manifest
