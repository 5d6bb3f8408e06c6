"""Connections to Redis by the settings' URL, user, password and TLS; errors of calls; unsupported kinds of Redis."""

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

# Errors that a call can raise: redis-py's own, and those of its parser on a corrupt reply or of another kind of server.
# RuntimeError is uvloop's, for a connection that closed after it was checked.
REDIS_ERRORS = (RedisError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


class UnsupportedRedis(RedisError):
    """The server is a node of a Redis Cluster, or a Sentinel."""


def connection_options(redis: RedisSettings, *, timeout_s: float | None = None) -> dict[str, Any]:
    """Return the options of ``from_url`` of any redis-py client; ``timeout_s`` replaces the settings' time-out."""
    options: dict[str, Any] = {
        "socket_timeout": timeout_s or redis.timeout_s,
        "socket_connect_timeout": timeout_s or redis.timeout_s,
    }
    if redis.username:
        options["username"] = redis.username
    if redis.password:
        options["password"] = redis.password
    # Valid for rediss:// only; the settings refuse them for other URLs.
    if redis.ca_file is not None:
        options["ssl_ca_certs"] = str(redis.ca_file)
    if redis.cert_file is not None and redis.key_file is not None:
        options |= {"ssl_certfile": str(redis.cert_file), "ssl_keyfile": str(redis.key_file)}
    return options


def connect(redis: RedisSettings, *, timeout_s: float | None = None, **more: Any) -> Redis:
    """Return a client that neither retries nor reads files on the event loop. It connects with the first call."""
    return Redis.from_url(
        redis.url,
        retry=Retry(NoBackoff(), 0),
        driver_info=None,  # redis-py would read files to send its version
        **connection_options(redis, timeout_s=timeout_s),
        **more,
    )


def refuse_modes(info: Mapping[str, object]) -> None:
    """Refuse a cluster's node and a Sentinel: keys would be elsewhere, and no gateway would follow a policy.

    Raises:
        UnsupportedRedis: It is one of these; the message says what to set.
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
    """Ask the server for its mode, and refuse a cluster's node and a Sentinel.

    Raises:
        UnsupportedRedis: It is one of these.
        RedisError: It does not answer.
    """
    try:
        info = await redis.info()
    except (AuthenticationError, AuthorizationError):
        raise
    except ResponseError:
        return  # INFO is not allowed for this user or proxy: reading and writing keys will show
    if isinstance(info, Mapping):
        refuse_modes(info)


async def check_redis(settings: RedisSettings) -> None:
    """Refuse an unsupported Redis at the start. A Redis that does not answer is accepted: it may come later.

    Raises:
        SettingsError: The server is a node of a Redis Cluster, or a Sentinel.
    """
    async with contextlib.aclosing(connect(settings, timeout_s=min(_CHECK_S, settings.timeout_s))) as redis:
        try:
            await refuse_unsupported(redis)
        except UnsupportedRedis as error:
            raise SettingsError(str(error)) from error
        except REDIS_ERRORS:
            return


async def run_when_full(redis: Redis, script: str, *, keys: Sequence[str], args: Sequence[str]) -> Any:
    """Run a script that may write although Redis has reached its ``maxmemory``. For writes of a few kilobytes only.

    Needs Redis 7 or Valkey, and a user with ``@scripting``.
    """
    return await redis.eval("#!lua flags=allow-oom\n" + script, len(keys), *keys, *args)
