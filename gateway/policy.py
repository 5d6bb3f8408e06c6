"""Which adapter answers, with which N, at which default temperature: a versioned document in Redis.

Running gateways ask Redis for a newer one every ``refresh_s``; requests read it from memory. The last known good one
is kept on disk, for a start without Redis; without either, the settings are version 0. A malformed or out-of-range
document is refused and logged, and the last good one holds. A Redis that lost the document gets it back.

A second policy may stand beside the first and answer a share of all conversations: before its promotion it is the
``canary``; after it the two change places, and the old one keeps a small share as the ``holdback``, so that there is
something to compare with. Which conversations are whose follows from one number in [0, 1) a conversation (see
``gateway.best_of_n.plan``): the canary has those below its share, the holdback those from 1 − its share on. So a
growing share, and the promotion itself, move conversations only from the old policy to the new one. A program that
does not know ``canary`` serves the first policy alone.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, WatchError

from gateway import redis_client
from gateway.errors import PolicyError
from gateway.redis_client import REDIS_ERRORS, connect
from gateway.settings import PolicySettings, RedisSettings, Settings, server_urls
from gateway.types import ArmName, Readiness
from gateway.weight_check import WeightCheck

if TYPE_CHECKING:
    from redis.asyncio.client import Pipeline

_HISTORY = 1_000
_FILE = "policy.json"
# KEYS: the policy, its history. ARGV: the policy that must be in force (empty: none), the new one, the last place kept.
# For a Redis that is out of memory: a rollback must reach a full one, and its few kilobytes are no danger to it.
_PUBLISH = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], 0, ARGV[3])
return 1
"""
_RESTORE = "return redis.call('SET', KEYS[1], ARGV[1], 'NX')"

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Arm:
    """Who answers a request: an adapter (None: the base), with N draws, at these URLs (none: the settings')."""

    name: ArmName
    adapter: str | None
    n: int
    urls: tuple[str, ...] = ()
    default_temperature: float | None = None


class _Served(BaseModel):
    """What both policies of a document say of themselves."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    adapter: str | None = None
    n: int = Field(ge=1)
    urls: tuple[str, ...] = ()
    default_temperature: float | None = Field(default=None, ge=0, le=2)

    _http_only = field_validator("urls")(server_urls)

    def arm(self, name: ArmName) -> Arm:
        """The arm of this name that answers like this."""
        return Arm(name, self.adapter, self.n, self.urls, self.default_temperature)


class Canary(_Served):
    """The second policy. ``trial`` names the comparison: the same before and after the promotion."""

    share: float = Field(gt=0, lt=1)
    trial: str = ""
    holdback: bool = False


class Base(_Served):
    """The last policy that had no adapter: it answers where no server has the adapter of its successors any more."""


class Policy(_Served):
    """One version of the policy. Fields of a newer program are ignored, so that a mixed fleet keeps serving.

    ``undoes`` names the trial that this version rolled back.
    """

    version: int = Field(ge=0, lt=2**63)
    n_max: int = Field(ge=1)
    exploration: float = Field(default=0.0, ge=0, le=1)
    canary: Canary | None = None
    base: Base | None = None
    checks: dict[str, WeightCheck] = Field(default_factory=dict)
    """By adapter: what it answers, for servers that do not list theirs; older documents have none."""
    undoes: str | None = None
    reason: str = ""
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @model_validator(mode="after")
    def _exploration_sees_n(self) -> Self:
        if max(self.n, self.canary.n if self.canary is not None else 1) > self.n_max:
            raise ValueError("n must not exceed n_max: exploration would not see the N that serves")
        return self

    @property
    def stable(self) -> Arm:
        """The policy that answers what the second one does not."""
        return self.arm("stable")

    @property
    def second(self) -> Arm | None:
        """The canary or the holdback, where there is one."""
        if self.canary is None:
            return None
        return self.canary.arm("holdback" if self.canary.holdback else "canary")

    def weight_checks(self) -> list[tuple[Arm, WeightCheck]]:
        """Return the arms whose adapters can be checked by what they answer, each with its check."""
        arms = [arm for arm in (self.stable, self.second) if arm is not None]
        return [(arm, check) for arm in arms if arm.adapter is not None and (check := self.checks.get(arm.adapter))]

    def base_arm(self, n: int) -> Arm:
        """Return the base model at its own N, for when no server has the stable policy's adapter.

        Args:
            n: Its N where the document does not say: those of older programs don't.
        """
        base = self.base or Base(n=n, default_temperature=self.default_temperature)
        return Arm("base", None, min(base.n, self.n_max), base.urls, base.default_temperature)

    def arm_at(self, place: float) -> Arm:
        """Who answers the conversation at this place in [0, 1)."""
        second = self.second
        if self.canary is None or second is None:
            return self.stable
        share = self.canary.share
        return second if (place >= 1 - share if self.canary.holdback else place < share) else self.stable

    @property
    def pools(self) -> tuple[tuple[str, ...], ...]:
        """The URLs at which it is answered, the stable arm's first."""
        return (self.urls,) if self.canary is None else (self.urls, self.canary.urls)

    @classmethod
    def from_settings(cls, settings: PolicySettings) -> Self:
        """Version 0: what holds until a policy is published."""
        return cls(
            version=0,
            adapter=settings.adapter,
            n=settings.n,
            n_max=max(settings.n, settings.n_max),
            default_temperature=settings.default_temperature,
            exploration=settings.exploration,
            reason="settings",
        )

    def successor(self, *, reason: str, **changes: Any) -> Self:
        """The next version, with some fields changed.

        Raises:
            PolicyError: A changed field is unknown or out of range.
        """
        unknown = sorted(changes.keys() - type(self).model_fields.keys())
        if unknown:
            raise PolicyError("unknown policy fields: " + ", ".join(unknown))
        fields = (
            self.model_dump(exclude={"created", "undoes"})
            | ({"base": self.model_dump(include=set(Base.model_fields))} if self.adapter is None else {})
            | changes
            | {"version": self.version + 1, "reason": reason}
        )
        try:
            return type(self).model_validate(fields)
        except ValidationError as error:
            raise PolicyError(_problems(error)) from error

    @classmethod
    def parse(cls, document: bytes | str, *, n_limit: int) -> Self:
        """Read a document.

        Raises:
            PolicyError: It is malformed, or asks for more candidates than ``n_limit``.
        """
        try:
            policy = cls.model_validate_json(document)
        except ValidationError as error:
            raise PolicyError(_problems(error)) from error
        if policy.n_max > n_limit:
            raise PolicyError(f"n_max: {policy.n_max} is over this gateway's limit of {n_limit}")
        return policy


class PolicyStore:
    """Serves the current policy from memory and keeps it fresh.

    ``start`` never fails for want of Redis, nor does the refresh: ``current`` is then the last known good policy.

    Args:
        settings: The policy before any was published, and how often to refresh.
        redis: Where the document lives.
        folder: Where the last known good policy is kept on disk.
        n_limit: Largest N served here; a document that asks for more is refused.
    """

    def __init__(self, settings: PolicySettings, redis: RedisSettings, *, folder: Path, n_limit: int) -> None:
        self._defaults = Policy.from_settings(settings)
        self._refresh_s = settings.refresh_s
        self._n_limit = n_limit
        self._file = folder / _FILE
        self._key = f"{redis.key_prefix}:policy"
        self._history_key = f"{redis.key_prefix}:policy:history"
        self._settings = redis
        self._redis: Redis = connect(redis)
        self._current = self._defaults
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._refused: bytes | str | None = None
        self._supported = False
        self.source: Literal["settings", "disk", "redis"] = "settings"
        self.last_error: str | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, *, folder: Path | None = None) -> AsyncIterator[Self]:
        """Open the store as a gateway with these settings does: start it, close it at the end.

        Args:
            settings: The gateway's.
            folder: Where the last known good policy is kept, if not beside the gateway's spool.

        Raises:
            SettingsError: It is a Redis Cluster or a Sentinel.
        """
        store = cls(
            settings.policy,
            settings.redis,
            folder=folder or settings.journal.spool_dir,
            n_limit=settings.race.best_of_max,
        )
        try:
            await store.start()
            yield store
        finally:
            await store.aclose()

    @property
    def current(self) -> Policy:
        """The policy that holds now. No I/O."""
        return self._current

    async def start(self) -> None:
        """Load the policy (Redis, else disk, else settings) and begin to refresh it.

        Raises:
            SettingsError: It is a Redis Cluster or a Sentinel.
        """
        saved = await asyncio.to_thread(self._load)
        if saved is not None:
            self._current, self.source = saved, "disk"
        await self.refresh()
        if self.last_error == redis_client.UnsupportedRedis.__name__:
            await redis_client.check_redis(self._settings)
        self._task = asyncio.create_task(self._refresh_loop(), name="policy-refresh")
        self._task.add_done_callback(self._refresh_ended)

    async def refresh(self) -> None:
        """Ask Redis once for the policy. Never raises for what Redis is or says."""
        try:
            if not self._supported:
                await redis_client.refuse_unsupported(self._redis)
                self._supported = True
            document = await self._redis.get(self._key)
            if not isinstance(document, bytes | None):
                raise TypeError("a text was asked for")
            if document is None and self._current.version > 0:
                log.warning("policy_restored", version=self._current.version)
                await self._restore(self._current.model_dump_json())
        except REDIS_ERRORS as error:
            self._failed(type(error).__name__)
            return
        if self.last_error is not None:
            log.info("policy_refresh_recovered")
            self.last_error = None
        if document is not None:
            await self._take(document)

    async def publish(self, policy: Policy) -> None:
        """Make ``policy`` the current one everywhere. Its version must be the published one's plus one.

        Raises:
            PolicyError: Another version is published already, the policy is out of range, or Redis does not answer.
        """
        document = policy.model_dump_json()
        Policy.parse(document, n_limit=self._n_limit)
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                await self._publish(pipe, policy, document)
        except WatchError as error:
            raise PolicyError("another policy was published at the same time: read it and try again") from error
        except REDIS_ERRORS as error:
            raise PolicyError(f"not published: Redis said {type(error).__name__}") from error
        await self._take(document)

    async def history(self, limit: int = 100) -> list[Policy]:
        """Published policies, newest first.

        Raises:
            PolicyError: Redis does not answer.
        """
        try:
            documents = await self._redis.lrange(self._history_key, 0, limit - 1)
        except REDIS_ERRORS as error:
            raise PolicyError(f"no history: Redis said {type(error).__name__}") from error
        return [policy for document in documents if (policy := _readable(document)) is not None]

    async def readiness(self) -> Readiness:
        """Always ready, since a last known good policy can serve; says what it is and where it came from."""
        facts = {"version": self._current.version, "source": self.source, "n": self._current.n}
        detail = "" if self.last_error is None else f"policy not refreshed: {self.last_error}"
        return Readiness(ready=True, detail=detail, facts=facts)

    async def aclose(self) -> None:
        """Stop refreshing and close the connection."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._redis.aclose()

    async def _refresh_loop(self) -> None:
        # Before Python 3.12 asyncio.wait_for, which the client uses, can swallow a cancellation: hence the flag.
        while not self._closing:
            await asyncio.sleep(self._refresh_s)
            await self.refresh()

    def _refresh_ended(self, task: asyncio.Task[None]) -> None:
        """It only ends when it is cancelled or told to; anything else is a mistake that must not go unseen."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.last_error = type(error).__name__
            log.critical("policy_refresh_died", exc_info=error)

    async def _publish(self, pipe: Pipeline, policy: Policy, document: str) -> None:
        await pipe.watch(self._key)
        found = await pipe.get(self._key)
        published = None if found is None else _readable(found)
        # An unreadable or lost document must not restart the count: records name policies by version.
        version = self._current.version if published is None else published.version
        if policy.version != version + 1:
            raise PolicyError(f"version {policy.version} does not follow the published version {version}")
        pipe.multi()  # type: ignore[no-untyped-call]
        pipe.set(self._key, document)
        pipe.lpush(self._history_key, document)
        pipe.ltrim(self._history_key, 0, _HISTORY - 1)
        try:
            await pipe.execute()
        except OutOfMemoryError:
            await self._publish_when_full(found, document)

    async def _publish_when_full(self, found: bytes | str | None, document: str) -> None:
        before = found.decode() if isinstance(found, bytes) else found or ""
        keys, args = [self._key, self._history_key], [before, document, str(_HISTORY - 1)]
        if not await redis_client.run_when_full(self._redis, _PUBLISH, keys=keys, args=args):
            raise WatchError("another policy was published")

    async def _restore(self, document: str) -> None:
        """Put the policy back into a Redis that has none, unless another gateway has done so."""
        try:
            await self._redis.set(self._key, document, nx=True)
        except OutOfMemoryError:
            await redis_client.run_when_full(self._redis, _RESTORE, keys=[self._key], args=[document])

    async def _take(self, document: bytes | str) -> None:
        """Make a document from Redis the current policy, if it is a good one."""
        try:
            policy = Policy.parse(document, n_limit=self._n_limit)
        except PolicyError as error:
            if document != self._refused:  # once, not every refresh_s
                log.error("policy_refused", problem=error.message, kept_version=self._current.version)
            self._refused, self.last_error = document, "PolicyError"
            return
        self.source = "redis"
        if policy == self._current:
            return
        log.info(
            "policy_changed", version=policy.version, was=self._current.version, n=policy.n, adapter=policy.adapter
        )
        self._current = policy
        try:
            await asyncio.to_thread(self._save, policy)
        except OSError as error:
            log.error("policy_not_saved", error=type(error).__name__)

    def _failed(self, error: str) -> None:
        self._supported = False  # after an outage something else may answer there
        if error != self.last_error:
            log.warning("policy_refresh_failed", error=error, version=self._current.version)
        self.last_error = error

    def _load(self) -> Policy | None:
        try:
            return Policy.parse(self._file.read_bytes(), n_limit=self._n_limit)
        except FileNotFoundError:
            return None
        except (PolicyError, OSError) as error:
            log.error("policy_file_unreadable", error=type(error).__name__)
            return None

    def _save(self, policy: Policy) -> None:
        """Replace the file in one step: workers share it, and any may be killed here."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        draft = self._file.with_name(f"{_FILE}.{uuid.uuid4().hex}")
        try:
            with draft.open("w") as file:
                file.write(policy.model_dump_json())
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._file)
        finally:
            draft.unlink(missing_ok=True)


def _readable(document: bytes | str) -> Policy | None:
    """A published document, whatever this gateway's limit; None if it is malformed."""
    try:
        return Policy.model_validate_json(document)
    except ValidationError:
        return None


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'policy'}: {item['msg']}" for item in error.errors())
