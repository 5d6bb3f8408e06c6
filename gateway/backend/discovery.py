"""Servers behind one name: ``dns+http://tgi:80`` stands for every address that the name has now.

A headless Kubernetes service and a scaled compose service resolve to the addresses of their replicas, so the fleet
grows and shrinks without a change of settings.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog

PREFIX = "dns+"
_DEFAULT_PORT = 80

log = structlog.get_logger()


def is_name(url: str) -> bool:
    """Return whether a URL stands for all addresses of its host."""
    return url.startswith(PREFIX)


def host_of(url: str) -> str:
    """Return host and port, for logs and errors: the URL itself may hold a password."""
    return urlsplit(url).netloc.rpartition("@")[2]


async def expand(urls: Sequence[str], known: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the URLs with every name replaced by a URL for each of its addresses, in a fixed order.

    Args:
        urls: As the settings or a policy have them.
        known: The last result, which holds while a name cannot be resolved at all.
    """
    found: list[str] = []
    for url in urls:
        if not is_name(url):
            found.append(url)
            continue
        try:
            found += await _addresses(url.removeprefix(PREFIX))
        except OSError as error:  # socket.gaierror is one
            log.warning("backend_name_unresolved", host=urlsplit(url).hostname, error=type(error).__name__)
            return tuple(known)
    return tuple(dict.fromkeys(found))


async def _addresses(url: str) -> list[str]:
    parts = urlsplit(url)
    port = parts.port or _DEFAULT_PORT
    listed = await asyncio.get_running_loop().getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
    credentials, at, _ = parts.netloc.rpartition("@")
    hosts = sorted({str(address[0]) for *_, address in listed})
    return [
        f"{parts.scheme}://{credentials}{at}{f'[{host}]' if ':' in host else host}:{port}{parts.path}" for host in hosts
    ]
