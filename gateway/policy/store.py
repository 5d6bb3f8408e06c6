"""The current policy, served from memory and refreshed from Redis every ``refresh_s``.

Without Redis the last known good policy on disk serves; without that, the settings (version 0). A malformed or
out-of-range document is refused and logged, and the last good one stays current. A Redis that lost the document gets
it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, Self

import structlog

from gateway.errors import PolicyError
from gateway.files import write_atomically
from gateway.policy.document import Policy
from gateway.policy.published import PublishedPolicy
from gateway.redis_client import REDIS_ERRORS, UnsupportedRedis, check_redis
from gateway.settings import PolicySettings, RedisSettings, Settings
from gateway.types import Readiness

_FILE = "policy.json"

_log = structlog.get_logger()


class PolicyStore:
    """Serves the current policy from memory and keeps it fresh.

    Args:
        settings: The policy until one is published, and how often to refresh.
        redis: Where the document is published.
        folder: Where the last known good policy is saved on disk.
        n_limit: Largest N served here; a document with a larger one is refused.
    """

    def __init__(self, settings: PolicySettings, redis: RedisSettings, *, folder: Path, n_limit: int) -> None:
        self._refresh_s = settings.refresh_s
        self._n_limit = n_limit
        self._file = folder / _FILE
        self._redis = redis
        self._published = PublishedPolicy(redis)
        self._current = Policy.from_settings(settings)
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._refused: bytes | str | None = None
        self.source: Literal["settings", "disk", "redis"] = "settings"
        self.last_error: str | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, *, folder: Path | None = None) -> AsyncIterator[Self]:
        """Open the store as a gateway with these settings does: start it, close it at the end.

        Raises:
            SettingsError: Redis is a Redis Cluster or a Sentinel.
        """
        folder = folder or settings.journal.spool_dir
        store = cls(settings.policy, settings.redis, folder=folder, n_limit=settings.race.best_of_max)
        try:
            await store.start()
            yield store
        finally:
            await store.aclose()

    @property
    def current(self) -> Policy:
        return self._current

    async def start(self) -> None:
        """Load the policy (from Redis, else disk, else the settings) and begin to refresh it.

        Raises:
            SettingsError: Redis is a Redis Cluster or a Sentinel. A Redis that does not answer is no failure.
        """
        policy = await asyncio.to_thread(self._load)
        if policy is not None:
            self._current, self.source = policy, "disk"
        await self.refresh()
        if self.last_error == UnsupportedRedis.__name__:
            await check_redis(self._redis)
        self._task = asyncio.create_task(self._refresh_loop(), name="policy-refresh")
        self._task.add_done_callback(self._report_end)

    async def refresh(self) -> None:
        """Read the policy from Redis once. Redis's failures are logged and kept in ``last_error``, never raised."""
        try:
            document = await self._published.read()
            if document is None and self._current.version > 0:
                _log.warning("policy_restored", version=self._current.version)
                await self._published.restore(self._current.model_dump_json())
        except REDIS_ERRORS as error:
            self._published.checked = False  # after an outage another server may answer at the same address
            name = type(error).__name__
            if name != self.last_error:
                _log.warning("policy_refresh_failed", error=name, version=self._current.version)
            self.last_error = name
            return
        if self.last_error is not None:
            _log.info("policy_refresh_recovered")
            self.last_error = None
        if document is not None:
            await self._apply(document)

    async def publish(self, policy: Policy) -> None:
        """Make ``policy`` the current one everywhere. Its version must be the published one's plus one.

        Raises:
            PolicyError: Another version is published already, the policy is out of range, or Redis does not answer.
        """
        document = policy.model_dump_json()
        Policy.parse(document, n_limit=self._n_limit)
        await self._published.publish(policy, document, last_version=self._current.version)
        await self._apply(document)

    async def history(self, limit: int = 100) -> list[Policy]:
        """Return the published policies, newest first.

        Raises:
            PolicyError: Redis does not answer.
        """
        return await self._published.history(limit)

    async def readiness(self) -> Readiness:
        """Return ready in any case: the last known good policy can serve. The facts name its version and source."""
        facts = {"version": self._current.version, "source": self.source, "n": self._current.n}
        detail = "" if self.last_error is None else f"policy not refreshed: {self.last_error}"
        return Readiness(ready=True, detail=detail, facts=facts)

    async def aclose(self) -> None:
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._published.aclose()

    async def _refresh_loop(self) -> None:
        # Before Python 3.12 asyncio.wait_for, which redis-py uses, can swallow a cancellation: hence the flag.
        while not self._closing:
            await asyncio.sleep(self._refresh_s)
            await self.refresh()

    def _report_end(self, task: asyncio.Task[None]) -> None:
        """Log an end of the refresh loop that is neither cancellation nor closing: it would go unnoticed."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.last_error = type(error).__name__
            _log.critical("policy_refresh_died", exc_info=error)

    async def _apply(self, document: bytes | str) -> None:
        """Make a document from Redis the current policy and save it, unless it is malformed or out of range."""
        try:
            policy = Policy.parse(document, n_limit=self._n_limit)
        except PolicyError as error:
            if document != self._refused:  # logged once, not with every refresh
                _log.error("policy_refused", problem=error.message, kept_version=self._current.version)
            self._refused, self.last_error = document, "PolicyError"
            return
        self.source = "redis"
        if policy == self._current:
            return
        _log.info(
            "policy_changed", version=policy.version, was=self._current.version, n=policy.n, adapter=policy.adapter
        )
        self._current = policy
        try:
            # Atomically: workers share the file, and any of them may be killed here.
            await asyncio.to_thread(write_atomically, self._file, policy.model_dump_json().encode())
        except OSError as error:
            _log.error("policy_not_saved", error=type(error).__name__)

    def _load(self) -> Policy | None:
        try:
            return Policy.parse(self._file.read_bytes(), n_limit=self._n_limit)
        except FileNotFoundError:
            return None
        except (PolicyError, OSError) as error:
            _log.error("policy_file_unreadable", error=type(error).__name__)
            return None
