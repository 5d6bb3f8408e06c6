"""Checks the URL of Redis, so that a mistake in it is told in words and without the password in it."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit


def redis_url(url: str) -> str:
    """The URL, if it names one Redis. No error repeats a part of it: it may hold a password.

    Raises:
        ValueError: It does not.
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
    """Whether a split URL has a host with a port and a database, or a socket's path, and nothing astray."""
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
