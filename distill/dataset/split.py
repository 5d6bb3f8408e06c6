"""Split of conversations into training and held-out, by a hash of the first user message: permanent, without a list.

Conversations with the same beginning are on the same side: all races of a prompt, and its continuations.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_SALT = b"ratchet held-out split, version 1"


def first_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the first user message, its text parts joined; empty if there is none."""
    content = next((message.get("content") for message in messages if message.get("role") == "user"), None)
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


def conversation_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the key of conversations with the same first user message, independent of case, spacing and Unicode form.

    Returns:
        32 hexadecimal digits.
    """
    text = " ".join(unicodedata.normalize("NFKC", first_user_text(messages)).casefold().split())
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def is_held_out(key: str, share: float) -> bool:
    """Return True if conversations of this key measure and never train.

    A larger share moves keys from training to held-out, never back.

    Args:
        key: From ``conversation_key``.
        share: Share of keys that are held out, in [0, 1].
    """
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=_SALT).digest()
    return int.from_bytes(digest) < share * 2**64
