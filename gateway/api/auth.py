"""API keys: a file of hashes, compared in constant time.

A key is ``rk-`` and 256 random bits, so a plain SHA-256 is as good as a slow hash: there is nothing to guess. The
file has a line a key, ``name sha256:hex``; ``python -m gateway key new NAME`` makes one. ``#`` starts a comment.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import AuthenticationFailed, SettingsError

_LINE = re.compile(r"^(?P<name>[A-Za-z0-9_.-]{1,64})\s+sha256:(?P<digest>[0-9a-f]{64})$")


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The known keys; none at all means that no key is asked for.

    Args:
        digests: SHA-256 of each key.
    """

    digests: tuple[bytes, ...] = ()

    @classmethod
    def read(cls, path: Path | None) -> ApiKeys:
        """Read the file of hashes.

        Raises:
            SettingsError: The file cannot be read, a line is malformed, or there is no key in it.
        """
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"the API key file {path} cannot be read: {error}") from error
        digests = []
        for number, line in enumerate(lines, start=1):
            if not (text := line.split("#", 1)[0].strip()):
                continue
            if (match := _LINE.match(text)) is None:
                raise SettingsError(f"{path}, line {number}: expected `name sha256:<64 hex digits>`")
            digests.append(bytes.fromhex(match["digest"]))
        if not digests:
            raise SettingsError(f"the API key file {path} holds no key")
        return cls(tuple(digests))

    def authenticate(self, authorization: str | None) -> str | None:
        """The id of the caller's key (16 hex digits of its hash, for the journal); None where none is asked for.

        Raises:
            AuthenticationFailed: No key was sent, or an unknown one.
        """
        if not self.digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise AuthenticationFailed("an API key is needed: send it as `Authorization: Bearer <key>`")
        sent = hashlib.sha256(key.strip().encode()).digest()
        # Every known key is compared, so that the time tells nothing about which one came close.
        known = [hmac.compare_digest(sent, digest) for digest in self.digests]
        if not any(known):
            raise AuthenticationFailed("this API key is not known here")
        return sent.hex()[:16]


def new_key(name: str) -> tuple[str, str]:
    """A fresh key, and the line for the key file.

    Raises:
        SettingsError: The name has characters that the file cannot hold.
    """
    key = "rk-" + secrets.token_urlsafe(32)
    line = f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    if not _LINE.match(line):
        raise SettingsError("a key's name is 1 to 64 letters, digits, dots, dashes and underscores")
    return key, line
