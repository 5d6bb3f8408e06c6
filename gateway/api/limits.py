"""Enforce the limits of keys: counted in Redis for all gateways, or by this process alone while Redis is away.

Callers read what is left of their limits in OpenAI's ``x-ratelimit-*`` headers.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from gateway.api.counters import Counters, CountersUnavailable, Entrance, LocalCounters, SharedCounters
from gateway.api.keyfile import Key, Limits
from gateway.errors import RateLimited
from gateway.redis_client import connect
from gateway.settings import Settings

REDIS_TIMEOUT_S = 0.25  # that a request waits for Redis to count it; then this process counts alone
_ALONE_S = 1.0
_MANY_CONNECTIONS = 1024
_WORDS = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "races_in_flight": "requests at once",
}

_NONE = Limits()

_log = structlog.get_logger()


@dataclass(slots=True)
class Visit:
    """One admitted request of a key. Call ``leave`` when it has ended; further calls do nothing."""

    cost_tokens: Callable[[], int] = lambda: 0
    """Return what the request has cost so far: its prompt and every token drawn for it."""
    on_leave: Callable[[int], None] | None = None
    limits: Limits = _NONE
    entrance: Entrance | None = None
    """The state of the buckets when the request was counted; None if the key has no limits."""

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers: what is left of the limits per minute, after this request's cost so far."""
        return {} if self.entrance is None else limit_headers(self.limits, self.entrance, self.cost_tokens())

    def leave(self) -> None:
        """End the race and pay its tokens. Does not wait for Redis."""
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None:
            on_leave(self.cost_tokens())


class Limiter:
    """Admits requests as the limits of their keys allow. A key without limits costs no round trip to Redis.

    If Redis does not answer within its short timeout, this process counts alone for a second before it asks again.
    Each gateway then grants the whole limit.

    Args:
        settings: Redis and its timeout; the timeouts that bound a race's duration.
        clock: Monotonic seconds.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        lease_s = longest_visit_s(settings)
        self._redis = connect(settings.redis, timeout_s=REDIS_TIMEOUT_S, max_connections=_MANY_CONNECTIONS)
        self._shared = SharedCounters(self._redis, key_prefix=settings.redis.key_prefix, lease_s=lease_s)
        self._own = LocalCounters(lease_s=lease_s)
        self._clock = clock
        self._alone_until_s = 0.0
        self._is_shared = True
        self._leaving: set[asyncio.Task[None]] = set()

    async def enter(self, key: Key | None, *, race: bool) -> Visit:
        """Count a request before any work is done for it.

        Args:
            key: The caller's key; None if no key is required.
            race: True for a request that races: only races count as in flight and cost tokens.

        Raises:
            RateLimited: One of the key's limits is reached. The error has the time to wait.
        """
        limits = key.limits if key is not None else _NONE
        if not race:
            limits = replace(limits, tokens_per_minute=0, races_in_flight=0)
        if key is None or limits == _NONE:
            return Visit()
        lease = uuid.uuid4().hex
        counters, entrance = await self._enter(key.id, limits, lease)
        if (refusal := entrance.refusal) is not None:
            count = getattr(limits, refusal.limit)
            raise RateLimited(
                f"this API key has reached its limit of {count} {_WORDS[refusal.limit]}",
                retry_after_s=refusal.wait_s,
                headers=limit_headers(limits, entrance),
            )
        if not (limits.tokens_per_minute or limits.races_in_flight):
            return Visit(limits=limits, entrance=entrance)

        def on_leave(tokens: int) -> None:
            task = asyncio.create_task(self._leave(counters, key.id, limits, lease, tokens))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

        return Visit(on_leave=on_leave, limits=limits, entrance=entrance)

    async def aclose(self) -> None:
        """Wait until the races that ended are paid, and close the connection."""
        await asyncio.gather(*self._leaving)
        await self._redis.aclose()

    async def _enter(self, key_id: str, limits: Limits, lease: str) -> tuple[Counters, Entrance]:
        if self._clock() >= self._alone_until_s:
            try:
                entrance = await self._shared.enter(key_id, limits, lease)
            except CountersUnavailable as error:
                self._count_alone(error)
            else:
                if not self._is_shared:
                    self._is_shared = True
                    _log.info("limits_shared_again")
                return self._shared, entrance
        return self._own, await self._own.enter(key_id, limits, lease)

    async def _leave(self, counters: Counters, key_id: str, limits: Limits, lease: str, tokens: int) -> None:
        try:
            await counters.leave(key_id, limits, lease, tokens)
        except CountersUnavailable as error:
            self._count_alone(error)
            await self._own.leave(key_id, limits, lease, tokens)  # in Redis the race ends with its lease instead

    def _count_alone(self, error: CountersUnavailable) -> None:
        self._alone_until_s = self._clock() + _ALONE_S
        if self._is_shared:
            self._is_shared = False
            _log.warning("limits_not_shared", error=str(error))


def limit_headers(limits: Limits, entrance: Entrance, tokens: int = 0) -> dict[str, str]:
    """Return OpenAI's headers for the limits per minute that a key has.

    Args:
        limits: The key's limits.
        entrance: The state of the buckets after the request was counted.
        tokens: The request's cost since then.
    """
    buckets = (
        ("requests", limits.requests_per_minute, entrance.requests_full_in_s, 0),
        ("tokens", limits.tokens_per_minute, entrance.tokens_full_in_s, tokens),
    )
    headers = {}
    for name, per_minute, full_in_s, used in buckets:
        if per_minute:
            full_in_s += used * 60 / per_minute
            headers[f"x-ratelimit-limit-{name}"] = str(per_minute)
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(per_minute * (1 - full_in_s / 60) + 1e-6)))
            headers[f"x-ratelimit-reset-{name}"] = _duration(full_in_s)
    return headers


def _duration(seconds: float) -> str:
    """Return a duration in OpenAI's format: 0s, 17ms, 8.64s, 6m0s, 1h0m0s."""
    ms = math.ceil(seconds * 1e3)
    if 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    rest = f"{ms / 1e3:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}"
    return f"{minutes}m{rest}" if minutes else rest


def longest_visit_s(settings: Settings) -> float:
    """Return an upper bound of a request's duration: its body, then queue, race and rewards twice, with a fallback."""
    race = settings.race.queue_timeout_s + settings.race.deadline_s + settings.reward.timeout_s
    return settings.api.body_timeout_s + 2 * race + 10.0
