"""Files of examples and held-out prompts as JSON lines, and the hash of a curated set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from distill.dataset.example import Example, HeldOutPrompt
from distill.errors import DataError
from gateway.files import write_atomically

_EXAMPLE = TypeAdapter(Example)
_HELD_OUT = TypeAdapter(HeldOutPrompt)
T = TypeVar("T", Example, HeldOutPrompt)


def write_lines(path: Path, items: Iterable[Example] | Iterable[HeldOutPrompt]) -> None:
    """Write examples or held-out prompts atomically, one a line.

    Raises:
        DataError: The file cannot be written.
    """
    content = b"".join(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE) for item in items)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or type(error).__name__}") from error


def read_examples(path: Path) -> list[Example]:
    """Read a file of examples.

    Raises:
        DataError: The file is missing, or a line is not an example.
    """
    return _read(path, _EXAMPLE)


def read_held_out(path: Path) -> list[HeldOutPrompt]:
    """Read a file of held-out prompts.

    Raises:
        DataError: The file is missing, or a line is not a held-out prompt.
    """
    return _read(path, _HELD_OUT)


def content_hash(examples: Sequence[Example], held_out: Sequence[HeldOutPrompt] = ()) -> str:
    """Return the set's hash for the manifest, independent of the order.

    Returns:
        64 hexadecimal digits.
    """
    contents = [*map(_content, examples), *map(_content, held_out)]
    digests = sorted(hashlib.sha256(content).digest() for content in contents)
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _content(item: Example | HeldOutPrompt) -> bytes:
    """Return the bytes to hash; for an example without a reward model, those that earlier releases hashed."""
    if isinstance(item, Example) and item.reward_model is None:
        return orjson.dumps({name: value for name, value in asdict(item).items() if name != "reward_model"})
    return orjson.dumps(item)


def _read(path: Path, adapter: TypeAdapter[T]) -> list[T]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or type(error).__name__}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found.append(adapter.validate_json(line))
        except ValidationError as error:
            # "from None": pydantic's message quotes the text.
            problem = error.errors(include_url=False, include_input=False)[0]["type"]
            raise DataError(f"{path}, line {number}: malformed ({problem})") from None
    return found
