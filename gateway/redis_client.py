"""Connections to Redis, as the settings say: one place for URL, user, password and TLS."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.settings import RedisSettings

# What a call can raise: the library's own errors, and, where that which speaks is no Redis or no longer sound, whatever
# the reading of its reply stumbles over. RuntimeError is uvloop's for a connection that closed since it was looked at.
REDIS_ERRORS = (RedisError, OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError)


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
