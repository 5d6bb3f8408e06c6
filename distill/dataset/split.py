"""Which conversations are held out: decided by a hash of the first user message, so for ever and without a list.

Everything that begins alike falls on one side: all draws of a prompt, and all conversations that grew from it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_SALT = b"ratchet held-out split, version 1"


def first_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Text of the first user message, its text parts joined; empty when there is none."""
    content = next((message.get("content") for message in messages if message.get("role") == "user"), None)
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def conversation_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """What conversations with the same first user message share, whatever its case, spacing or Unicode form.

    Returns:
        32 hexadecimal digits.
    """
    text = " ".join(unicodedata.normalize("NFKC", first_user_text(messages)).casefold().split())
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def is_held_out(key: str, share: float) -> bool:
    """Whether conversations of this key measure and never train.

    Raising the share only moves keys from training to held-out, never back.

    Args:
        key: From ``conversation_key``.
        share: Share of keys that are held out, in [0, 1].
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=_SALT).digest()
    return int.from_bytes(digest) < share * 2**64
