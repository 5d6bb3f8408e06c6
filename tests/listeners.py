"""Count the sockets that listen on a port: with several workers, one for each."""

from __future__ import annotations

import asyncio

import psutil


def listeners(port: int) -> int:
    """Return the number of sockets that listen on a port, in any process."""
    waiting = (one for one in psutil.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN)
    return sum(one.laddr[1:] == (port,) for one in waiting)


async def until_all_listen(port: int, workers: int, *, timeout_s: float = 60.0) -> None:
    """Wait until each worker listens; before that the first of them gets every connection.

    Raises:
        TimeoutError: Some do not.
    """
    async with asyncio.timeout(timeout_s):
        while listeners(port) < workers:
            await asyncio.sleep(0.05)
