"""Connections to Redis, as the settings say: one place for URL, user, password and TLS."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError

from gateway.errors import SettingsError
from gateway.settings import RedisSettings

_CHECK_S = 2.0

# What a call can raise: the library's own errors, and, where that which speaks is no Redis or no longer sound, whatever
# the reading of its reply stumbles over. RuntimeError is uvloop's for a connection that closed since it was looked at.
REDIS_ERRORS = (RedisError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


class UnsupportedRedis(RedisError):
    """What answers is a node of a Redis Cluster, or a Sentinel."""


def connection_options(redis: RedisSettings, *, timeout_s: float | None = None) -> dict[str, Any]:
    """What ``from_url`` of any of the library's clients needs beside the URL.

    Args:
        redis: Where Redis is and how it is reached.
        timeout_s: Longest time of one call, if not the settings'.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s or redis.timeout_s,
        "socket_connect_timeout": timeout_s or redis.timeout_s,
    }
    if redis.username:
        options["username"] = redis.username
    if redis.password:
        options["password"] = redis.password
    # Only rediss:// knows these; the settings refuse them elsewhere.
    if redis.ca_file is not None:
        options["ssl_ca_certs"] = str(redis.ca_file)
    if redis.cert_file is not None and redis.key_file is not None:
        options |= {"ssl_certfile": str(redis.cert_file), "ssl_keyfile": str(redis.key_file)}
    return options


def connect(redis: RedisSettings, *, timeout_s: float | None = None, **more: Any) -> Redis:
    """A client that neither retries nor reads files on the event loop; nothing is connected yet.

    Args:
        redis: Where Redis is and how it is reached.
        timeout_s: Longest time of one call, if not the settings'.
        more: Further options of the client.
    """
    return Redis.from_url(
        redis.url,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,  # telling Redis the library's version reads files
        **connection_options(redis, timeout_s=timeout_s),
        **more,
    )


def refuse_modes(info: Mapping[str, object]) -> None:
    """Refuse what only looks like one Redis: its keys are elsewhere, and a policy would be followed by nobody.

    Args:
        info: Fields of Redis's INFO.

    Raises:
        UnsupportedRedis: It is a node of a cluster, or a Sentinel; the message says what to set.
    """
    mode = str(info.get("redis_mode") or info.get("server_mode") or "")
    if mode == "cluster" or str(info.get("cluster_enabled")) == "1":
        raise UnsupportedRedis(
            "GATEWAY_REDIS__URL leads to a node of a Redis Cluster, which is not supported: its keys are spread over "
            "nodes. Set a single Redis or Valkey (a primary with replicas is fine)"
        )
    if mode == "sentinel":
        raise UnsupportedRedis(
            "GATEWAY_REDIS__URL leads to a Redis Sentinel, which is not supported: set the primary's own address, or "
            "one that follows it (a service name, a proxy)"
        )


async def refuse_unsupported(redis: Redis) -> None:
    """Ask what answers, and refuse a cluster's node and a Sentinel.

    Raises:
        UnsupportedRedis: It is one of these.
        RedisError: It does not answer.
    """
    try:
        info = await redis.info()
    except (AuthenticationError, AuthorizationError):
        raise
    except ResponseError:
        return  # a user or a proxy that may not ask: the keys themselves will show
    if isinstance(info, Mapping):
        refuse_modes(info)


async def check_redis(settings: RedisSettings) -> None:
    """Refuse at start what cannot work. A Redis that is away is no reason: it may come.

    Raises:
        SettingsError: What answers is a node of a Redis Cluster, or a Sentinel.
    """
    async with contextlib.aclosing(connect(settings, timeout_s=min(_CHECK_S, settings.timeout_s))) as redis:
        try:
            await refuse_unsupported(redis)
        except UnsupportedRedis as error:
            raise SettingsError(str(error)) from error
        except REDIS_ERRORS:
            return


async def run_when_full(redis: Redis, script: str, *, keys: Sequence[str], args: Sequence[str]) -> Any:
    """Run a script that may write although Redis has reached its ``maxmemory``: a few kilobytes that free it, or undo.

    Needs Redis 7 or Valkey, and a user with ``@scripting``.
    """
    return await redis.eval("#!lua flags=allow-oom\n" + script, len(keys), *keys, *args)
