"""The file of API keys: one line for each key, with its scopes and limits.

    # name   hash             options, in any order
    app      sha256:<64 hex>  scopes=chat,feedback requests_per_minute=600 tokens_per_minute=100000 races_in_flight=8
    grafana  sha256:<64 hex>  scopes=admin

Without ``scopes`` a key may chat and give feedback; a limit that is not named is no limit. ``#`` starts a comment.
A key is ``rk-`` and 256 random bits, so a plain SHA-256 is as safe as a slow hash: the key cannot be guessed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gateway.errors import SettingsError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_COUNT = re.compile(r"[1-9][0-9]{0,11}")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "races_in_flight")


class Scope(StrEnum):
    """A permission of a key."""

    CHAT = "chat"
    FEEDBACK = "feedback"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a key over all gateways; 0 means no limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    races_in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Key:
    """One line of the file.

    Args:
        name: The key's name, for people.
        digest: SHA-256 of the key.
        scopes: The permissions of the key.
        limits: The limits of the key.
    """

    name: str
    digest: bytes
    scopes: frozenset[Scope] = frozenset({Scope.CHAT, Scope.FEEDBACK})
    limits: Limits = Limits()

    @property
    def id(self) -> str:
        """The key's name in the journal and in Redis: 16 hex digits of its hash."""
        return self.digest.hex()[:16]

    @property
    def line(self) -> str:
        """The key's line in the file."""
        scopes = "scopes=" + ",".join(scope for scope in Scope if scope in self.scopes)
        limits = [f"{name}={getattr(self.limits, name)}" for name in _LIMITS if getattr(self.limits, name)]
        return " ".join([self.name, f"sha256:{self.digest.hex()}", scopes, *limits])


def parse(content: bytes, path: Path) -> tuple[Key, ...]:
    """Return the keys of a file.

    Raises:
        SettingsError: The file is not text, has a malformed line or holds no key; the message names ``path``.
    """
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise SettingsError(f"the API key file {path} cannot be read: {error.reason}") from error
    keys: dict[bytes, Key] = {}
    for number, line in enumerate(lines, start=1):
        if not (words := line.split("#", 1)[0].split()):
            continue
        try:
            key = _key(words)
        except ValueError as error:
            raise SettingsError(f"{path}, line {number}: {error}") from error
        if key.digest in keys:
            raise SettingsError(f"{path}, line {number}: it repeats the key of {keys[key.digest].name}")
        keys[key.digest] = key
    if not keys:
        raise SettingsError(f"the API key file {path} holds no key")
    return tuple(keys.values())


def new_key(name: str, *, scopes: str = "", limits: Mapping[str, int] | None = None) -> tuple[str, str]:
    """Return a new key and its line for the file.

    Args:
        name: The key's name, for people.
        scopes: Scopes separated by commas; empty for the default.
        limits: Fields of ``Limits``; 0 means no limit.

    Raises:
        SettingsError: The name, a scope or a limit is not allowed in the file.
    """
    secret = "rk-" + secrets.token_urlsafe(32)
    words = [name, f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"]
    words += [f"scopes={scopes}"] if scopes else []
    words += [f"{limit}={count}" for limit, count in (limits or {}).items() if count]
    try:
        return secret, _key(words).line
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _key(words: list[str]) -> Key:
    if len(words) < 2 or not (digest := _DIGEST.fullmatch(words[1])):
        raise ValueError("expected `name sha256:<64 hex digits>` and perhaps options")
    if not _NAME.fullmatch(words[0]):
        raise ValueError("a key's name is 1 to 64 letters, digits, dots, dashes and underscores")
    options: dict[str, str] = {}
    for word in words[2:]:
        name, _, value = word.partition("=")
        if name in options:
            raise ValueError(f"{name} twice")
        options[name] = value
    key = Key(words[0], bytes.fromhex(digest[1]))
    scopes = _scopes(options.pop("scopes")) if "scopes" in options else key.scopes
    limits = Limits(**{name: _count(name, options.pop(name)) for name in _LIMITS if name in options})
    if options:
        raise ValueError(f"unknown option {next(iter(options))}; the options are scopes, {', '.join(_LIMITS)}")
    return Key(key.name, key.digest, scopes, limits)


def _scopes(text: str) -> frozenset[Scope]:
    try:
        return frozenset(Scope(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"scopes are {', '.join(Scope)}, separated by commas without spaces") from None


def _count(name: str, text: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{name} must be a whole number of at least 1")
    return int(text)
