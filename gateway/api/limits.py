"""Limits of a key: counted for all gateways in Redis, by this process alone while Redis is away.

What is left of them is told as OpenAI tells it, in ``x-ratelimit-*`` headers.
"""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from gateway.api.counters import Counters, CountersLost, Entrance, OwnCounters, SharedCounters
from gateway.api.keyfile import Key, Limits
from gateway.errors import RateLimited
from gateway.redis_client import connect
from gateway.settings import Settings

REDIS_TIMEOUT_S = 0.25  # that a request waits for Redis to count it; then this process counts alone
_ASIDE_S = 1.0
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
    """One request of a key, from its entrance on; ``leave`` when it has ended, once or more often."""

    cost_tokens: Callable[[], int] = lambda: 0
    """Return what the request has cost so far: its prompt and every token drawn for it."""
    on_leave: Callable[[int], None] | None = None
    limits: Limits = _NONE
    entrance: Entrance | None = None
    """What was left as it entered; None where nothing is limited by the minute."""

    def headers(self) -> dict[str, str]:
        """What is left of the key's limits a minute, less what this visit has cost by now."""
        return {} if self.entrance is None else limit_headers(self.limits, self.entrance, self.cost_tokens())

    def leave(self) -> None:
        """Give the race back and pay its tokens. Does not wait for Redis."""
        on_leave, self.on_leave = self.on_leave, None
        if on_leave is not None:
            on_leave(self.cost_tokens())


class Limiter:
    """Lets keys in as their limits allow. A key without limits costs nothing, least of all a round trip.

    When Redis does not answer within its short time, this process counts alone for a second before it asks again;
    each gateway then grants the whole limit.

    Args:
        settings: Where Redis is, how long a caller waits for it, and how long a race can last.
        clock: Monotonic seconds.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        lease_s = longest_visit_s(settings)
        self._redis = connect(settings.redis, timeout_s=REDIS_TIMEOUT_S, max_connections=_MANY_CONNECTIONS)
        self._shared = SharedCounters(self._redis, key_prefix=settings.redis.key_prefix, lease_s=lease_s)
        self._own = OwnCounters(lease_s=lease_s)
        self._clock = clock
        self._alone_until_s = 0.0
        self._is_shared = True
        self._leaving: set[asyncio.Task[None]] = set()

    async def enter(self, key: Key | None, *, race: bool) -> Visit:
        """Count a request before any work is done for it.

        Args:
            key: Whose; None where nobody is asked for one.
            race: Whether it races: only races hold a place and cost tokens.

        Raises:
            RateLimited: One of the key's limits is reached; says when to come back.
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
        """Wait for what is being given back, and close the connection."""
        await asyncio.gather(*self._leaving)
        await self._redis.aclose()

    async def _enter(self, key_id: str, limits: Limits, lease: str) -> tuple[Counters, Entrance]:
        if self._clock() >= self._alone_until_s:
            try:
                entrance = await self._shared.enter(key_id, limits, lease)
            except CountersLost as error:
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
        except CountersLost as error:
            self._count_alone(error)
            await self._own.leave(key_id, limits, lease, tokens)  # in Redis the race ends with its lease

    def _count_alone(self, error: CountersLost) -> None:
        self._alone_until_s = self._clock() + _ASIDE_S
        if self._is_shared:
            self._is_shared = False
            _log.warning("limits_not_shared", error=str(error))


def limit_headers(limits: Limits, entrance: Entrance, tokens: int = 0) -> dict[str, str]:
    """Return OpenAI's headers for the limits a minute that the key has.

    Args:
        limits: The key's.
        entrance: What was left as the request entered, its own count included.
        tokens: What it has cost since.
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
    """Write a time as OpenAI does: 0s, 17ms, 8.64s, 6m0s, 1h0m0s."""
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
    """No race is older than this: its body, then twice (the stable policy may take over) queue, draws and rewards."""
    race = settings.race.queue_timeout_s + settings.race.deadline_s + settings.reward.timeout_s
    return settings.api.body_timeout_s + 2 * race + 10.0
