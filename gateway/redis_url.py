"""Check the URL of Redis. Error messages explain the mistake without the password."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit


def redis_url(url: str) -> str:
    """Return the URL if it names one Redis.

    Raises:
        ValueError: It does not. The message repeats no part of it, since any part may hold a password.
    """
    form = "a URL is needed like redis://user:password@host:6379/0 (rediss:// for TLS, unix:///path)"
    encode = "in user and password write / ? # @ : % as %2F %3F %23 %40 %3A %25"
    url = url.strip()
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"{form}; {encode}") from None
    if "sentinel" in parts.scheme or "cluster" in parts.scheme:
        raise ValueError("Redis Sentinel and Redis Cluster are not supported: the URL of one Redis is needed")
    if parts.scheme not in {"redis", "rediss", "unix"} or "//" not in url:
        raise ValueError(form)
    if "," in parts.netloc.rpartition("@")[2]:
        raise ValueError("one host is needed: Redis Sentinel and Redis Cluster are not supported")
    if not _names_one_redis(parts):
        raise ValueError(f"{form}; {encode}")
    if parts.query and not _options_known(url):
        raise ValueError("an option after the ? is unknown to redis-py, or its value is bad")
    return url


def _names_one_redis(parts: SplitResult) -> bool:
    """Return True if the URL has a host, a valid port and database, or a socket's path, and nothing else."""
    if parts.fragment or "@" in parts.query:
        return False
    if parts.scheme == "unix":
        return bool(parts.path)
    try:
        port = parts.port
    except ValueError:
        return False
    return bool(parts.hostname) and port != 0 and re.fullmatch(r"/?|/\d{1,9}", parts.path) is not None


def _options_known(url: str) -> bool:
    from redis.asyncio import ConnectionPool  # here: most URLs have no options

    try:
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError):
        return False
    return True
