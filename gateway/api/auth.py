"""API keys: compared in constant time, and read again whenever their file changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path

import structlog

from gateway.api.keyfile import Key, Scope, parse
from gateway.errors import AuthenticationFailed, PermissionDenied, SettingsError
from gateway.types import Readiness

_REREAD_S = 1.0

_log = structlog.get_logger()


class ApiKeys:
    """The known keys. Without a file no key is required, and every caller may do everything.

    If the file becomes unreadable or malformed, the last good keys stay in force and readiness reports it.

    Args:
        path: The file (``gateway.api.keyfile``).

    Raises:
        SettingsError: The file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._content = b"" if path is None else _read(path)
        self._keys = () if path is None else parse(self._content, path)
        self._task: asyncio.Task[None] | None = None
        self._problem = ""

    def authenticate(self, authorization: str | None, scope: Scope | None = None) -> Key | None:
        """Return the caller's key; None if no key is required.

        Args:
            authorization: The header as sent.
            scope: The scope that the key must have; None accepts any known key.

        Raises:
            AuthenticationFailed: No key was sent, or an unknown one.
            PermissionDenied: The key may not do this.
        """
        if self._path is None:
            return None
        scheme, _, sent = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not sent:
            raise AuthenticationFailed("an API key is needed: send it as `Authorization: Bearer <key>`")
        digest = hashlib.sha256(sent.strip().encode()).digest()
        # Every known key is compared, so that the time does not reveal which one came close.
        known = [key for key in self._keys if hmac.compare_digest(digest, key.digest)]
        if not known:
            raise AuthenticationFailed("this API key is not known here")
        if scope is not None and scope not in known[0].scopes:
            raise PermissionDenied(f"this API key does not have the scope {scope}")
        return known[0]

    def start(self) -> None:
        """Begin to read the file once a second. Its content is compared: a time stamp may hide a change."""
        if self._path is not None:
            self._task = asyncio.create_task(self._reread_forever(self._path), name="api-keys")

    async def reread(self, path: Path) -> None:
        """Read the file, and put its keys in force if it has changed and is valid."""
        try:
            content = await asyncio.to_thread(_read, path)
            if content == self._content and not self._problem:
                return
            keys = parse(content, path)
        except SettingsError as error:
            if error.message != self._problem:  # once, not every second
                _log.error("api_keys_refused", problem=error.message, kept=len(self._keys))
            self._problem = error.message
            return
        added = len({key.digest for key in keys} - {key.digest for key in self._keys})
        removed = len({key.digest for key in self._keys} - {key.digest for key in keys})
        self._content, self._keys, self._problem = content, keys, ""
        _log.info("api_keys_changed", keys=len(keys), added=added, removed=removed)

    async def readiness(self) -> Readiness:
        """Return ready, with a detail if the keys in force are not those of the file."""
        return Readiness(True, "the API key file was changed to one that cannot be used" if self._problem else "")

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _reread_forever(self, path: Path) -> None:
        while True:
            await asyncio.sleep(_REREAD_S)
            await self.reread(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"the API key file {path} cannot be read: {error.strerror}") from error
