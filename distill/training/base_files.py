"""A digest of a base model's files that is computed in a moment, however large they are."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PIECES = 64
_PIECE_BYTES = 64 * 1024
_WEIGHTS = (".safetensors", ".gguf", ".bin")
_TEXTS = (".json", ".jinja", ".txt", ".model")


def base_digest(model: str) -> str:
    """Return a digest of a base model's files: weights, configuration, tokenizer and chat template.

    Of each file of weights the size and 64 evenly spaced pieces are hashed: training changes all of them.

    Args:
        model: A folder or hub id, as in DISTILL_TRAINING__MODEL; empty: the embedded one.

    Returns:
        Hexadecimal digits; empty for the embedded model, and for one that is not on this machine yet.
    """
    folder = _folder(model)
    if folder is None:
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.suffix in _WEIGHTS + _TEXTS:
            digest.update(path.name.encode() + b"\0" + _file_digest(path))
    return digest.hexdigest()[:16]


def _folder(model: str) -> Path | None:
    if not model:
        return None
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _file_digest(path: Path) -> bytes:
    size = path.stat().st_size
    if path.suffix in _TEXTS or size <= _PIECES * _PIECE_BYTES:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for piece in range(_PIECES):
            file.seek(piece * (size - _PIECE_BYTES) // (_PIECES - 1))
            digest.update(file.read(_PIECE_BYTES))
    return digest.digest()
