"""Count what a key has used of its limits: in Redis for all gateways, or in this process alone.

Each limit per minute is a bucket that holds the limit, begins full and refills evenly. Only one number of a bucket is
stored: ``full_at``, the time when it will be full again (the "generic cell rate algorithm"). Taking from the bucket
moves ``full_at`` forward. While it is more than a minute away the bucket is empty, and the excess is the exact wait.

The tokens that a race costs are known only at its end. So a request needs one token to enter and pays at its end. The
bucket may then fall below empty, and the key waits until it has refilled. Times are in whole microseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from redis.asyncio import Redis

from gateway.api.keyfile import Limits
from gateway.redis_client import REDIS_ERRORS

_MINUTE_US = 60_000_000
_RACE_WAIT_S = 1.0  # the time when a race will end is not known

Limit = Literal["requests_per_minute", "tokens_per_minute", "races_in_flight"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The limit that was reached, and the time to wait before trying again."""

    limit: Limit
    wait_s: float


@dataclass(frozen=True, slots=True)
class Entrance:
    """The result of counting a request, and the seconds until each bucket is full again."""

    refusal: Refusal | None
    requests_full_in_s: float
    tokens_full_in_s: float


class CountersUnavailable(Exception):
    """Redis did not count the request."""


class Counters(Protocol):
    """Counts what keys use. ``lease`` names one request of a key."""

    async def enter(self, key_id: str, limits: Limits, lease: str) -> Entrance:
        """Count one request, and one race if races are limited. If a limit is reached, count nothing and return it."""
        ...

    async def leave(self, key_id: str, limits: Limits, lease: str, tokens: int) -> None:
        """End the race and take its tokens from the bucket."""
        ...


@dataclass(slots=True)
class _Used:
    requests_full_at: int = 0
    tokens_full_at: int = 0
    leases: dict[str, int] = field(default_factory=dict)


class LocalCounters:
    """Counts in this process alone, while Redis is away.

    Args:
        lease_s: Seconds after which a race counts as ended.
        clock_us: Monotonic microseconds.
    """

    def __init__(self, *, lease_s: float, clock_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000) -> None:
        self._lease_us = int(lease_s * 1e6)
        self._clock_us = clock_us
        self._used: dict[str, _Used] = {}

    async def enter(self, key_id: str, limits: Limits, lease: str) -> Entrance:
        now = self._clock_us()
        used = self._used.setdefault(key_id, _Used())
        refusal = self._refusal(used, limits, lease, now)
        if refusal is None and limits.requests_per_minute:
            used.requests_full_at = max(used.requests_full_at, now) + _MINUTE_US // limits.requests_per_minute
        requests_us, tokens_us = (max(at - now, 0) for at in (used.requests_full_at, used.tokens_full_at))
        return Entrance(refusal, requests_us / 1e6, tokens_us / 1e6)

    def _refusal(self, used: _Used, limits: Limits, lease: str, now: int) -> Refusal | None:
        """Return the limit that is reached; if none is, add the race to those in flight."""
        buckets: tuple[tuple[Limit, int, int], ...] = (
            ("requests_per_minute", used.requests_full_at, limits.requests_per_minute),
            ("tokens_per_minute", used.tokens_full_at, limits.tokens_per_minute),
        )
        for limit, full_at, per_minute in buckets:
            if per_minute and (wait := max(full_at - now, 0) + _MINUTE_US // per_minute - _MINUTE_US) > 0:
                return Refusal(limit, wait / 1e6)
        used.leases = {name: ends for name, ends in used.leases.items() if ends > now}
        if limits.races_in_flight:
            if len(used.leases) >= limits.races_in_flight:
                return Refusal("races_in_flight", _RACE_WAIT_S)
            used.leases[lease] = now + self._lease_us
        return None

    async def leave(self, key_id: str, limits: Limits, lease: str, tokens: int) -> None:
        used = self._used.setdefault(key_id, _Used())
        used.leases.pop(lease, None)
        if limits.tokens_per_minute:
            cost = tokens * _MINUTE_US // limits.tokens_per_minute
            used.tokens_full_at = max(used.tokens_full_at, self._clock_us()) + cost


# KEYS: the buckets (a hash), the races (a sorted set by the end of their leases).
# ARGV: requests and tokens a minute, races in flight (0: no limit), the lease's name and its length.
# The clock is Redis's, because those of the gateways differ. %.0f, because Lua writes large numbers with 14 digits.
_ENTER = """
local minute = 60000000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_at = redis.call('HMGET', KEYS[1], 'requests_per_minute', 'tokens_per_minute')
local function reply(limit, wait)
  return {limit, wait, math.max(tonumber(full_at[1] or 0) - now, 0), math.max(tonumber(full_at[2] or 0) - now, 0)}
end
for index, limit in ipairs({'requests_per_minute', 'tokens_per_minute'}) do
  local per_minute = tonumber(ARGV[index])
  if per_minute > 0 then
    local wait = math.max(tonumber(full_at[index] or 0) - now, 0) + math.floor(minute / per_minute) - minute
    if wait > 0 then return reply(limit, wait) end
  end
end
local races = tonumber(ARGV[3])
if races > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  if redis.call('ZCARD', KEYS[2]) >= races then return reply('races_in_flight', 0) end
  redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[5]), ARGV[4])
  redis.call('PEXPIRE', KEYS[2], math.ceil(ARGV[5] / 1000))
end
local requests = tonumber(ARGV[1])
if requests > 0 then
  local full = math.max(tonumber(full_at[1] or 0), now) + math.floor(minute / requests)
  redis.call('HSET', KEYS[1], 'requests_per_minute', string.format('%.0f', full))
  if redis.call('PTTL', KEYS[1]) < 60000 then redis.call('PEXPIRE', KEYS[1], 61000) end
  full_at[1] = full
end
return reply('', 0)
"""

# ARGV: tokens a minute, the lease's name, tokens.
_LEAVE = """
redis.call('ZREM', KEYS[2], ARGV[2])
local per_minute = tonumber(ARGV[1])
if per_minute > 0 then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local full = math.max(tonumber(redis.call('HGET', KEYS[1], 'tokens_per_minute') or 0), now)
  full = full + math.floor(ARGV[3] * 60000000 / per_minute)
  redis.call('HSET', KEYS[1], 'tokens_per_minute', string.format('%.0f', full))
  local needed = math.ceil((full - now) / 1000) + 61000
  if redis.call('PTTL', KEYS[1]) < needed then redis.call('PEXPIRE', KEYS[1], needed) end
end
"""


class SharedCounters:
    """Counts in Redis, with one round trip for each call. A race whose gateway died ends with its lease.

    Args:
        redis: A connection used for nothing else, with a short timeout: callers wait for it.
        key_prefix: Prefix of every key written.
        lease_s: Seconds after which a race counts as ended.
    """

    def __init__(self, redis: Redis, *, key_prefix: str, lease_s: float) -> None:
        self._prefix = f"{key_prefix}:limits"
        self._lease_us = int(lease_s * 1e6)
        self._enter = redis.register_script(_ENTER)
        self._leave = redis.register_script(_LEAVE)

    async def enter(self, key_id: str, limits: Limits, lease: str) -> Entrance:
        """Count one request; see ``Counters``.

        Raises:
            CountersUnavailable: Redis did not answer, or refused.
        """
        counts = (limits.requests_per_minute, limits.tokens_per_minute, limits.races_in_flight)
        reply = await self._call(self._enter, key_id, [*counts, lease, self._lease_us])
        match reply:
            case [bytes(limit), int(wait_us), int(requests_us), int(tokens_us)] if min(requests_us, tokens_us) >= 0:
                return Entrance(_refusal(limit, wait_us), requests_us / 1e6, tokens_us / 1e6)
        raise CountersUnavailable("a reply that makes no sense")

    async def leave(self, key_id: str, limits: Limits, lease: str, tokens: int) -> None:
        """End the race; see ``Counters``.

        Raises:
            CountersUnavailable: Redis did not answer, or refused.
        """
        await self._call(self._leave, key_id, [limits.tokens_per_minute, lease, tokens])

    async def _call(self, script: Any, key_id: str, arguments: list[int | str]) -> Any:
        # Braces: in a Redis Cluster both keys of a caller are on one node.
        keys = [f"{self._prefix}:{{{key_id}}}:buckets", f"{self._prefix}:{{{key_id}}}:races"]
        try:
            return await script(keys=keys, args=arguments)
        except REDIS_ERRORS as error:
            raise CountersUnavailable(type(error).__name__) from error


def _refusal(limit: bytes, wait_us: int) -> Refusal | None:
    match limit:
        case b"":
            return None
        case b"races_in_flight":
            return Refusal("races_in_flight", _RACE_WAIT_S)
        case b"requests_per_minute" if wait_us > 0:
            return Refusal("requests_per_minute", wait_us / 1e6)
        case b"tokens_per_minute" if wait_us > 0:
            return Refusal("tokens_per_minute", wait_us / 1e6)
    raise CountersUnavailable("a reply that makes no sense")
