"""The load tests' own TCP proxy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from loadtests.faults.proxy import TcpProxy


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """Start a server that echoes its input; yield its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_it_carries_both_ways_until_either_side_ends(echo: int) -> None:
    """Bytes come back whole, and an end is passed on as an end."""
    async with TcpProxy(echo) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x" * 300_000)
        assert b"x" * 300_000 == await reader.readexactly(300_000)
        writer.write_eof()
        assert b"" == await reader.read()
        writer.close()


async def test_a_delay_is_paid_once_by_what_is_sent_together(echo: int) -> None:
    """A call is late by the delay; pipelined ones share it."""
    async with TcpProxy(echo, delay_s=0.3) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        started_s = time.monotonic()
        for _ in range(10):
            writer.write(b"y" * 100)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert b"y" * 1000 == await reader.readexactly(1000)
        assert 0.3 <= time.monotonic() - started_s < 3.0
        writer.close()


async def test_a_cut_breaks_what_stands_and_new_connections_serve(echo: int) -> None:
    """A cut ends a connection in the middle; the next one is whole."""
    async with TcpProxy(echo) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"z")
        assert b"z" == await reader.readexactly(1)
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"z")
        assert b"z" == await reader.readexactly(1)
        writer.close()


async def test_down_refuses_and_up_serves_on_the_same_port(echo: int) -> None:
    """While it is down, connections are refused; afterwards the same address serves again."""
    async with TcpProxy(echo) as proxy:
        port = proxy.port
        await proxy.down()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.up()
        assert port == proxy.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"z")
        assert b"z" == await reader.readexactly(1)
        writer.close()


async def test_a_target_that_is_gone_is_a_broken_connection(echo: int) -> None:
    """If nothing listens behind the proxy, its client is cut and does not wait."""
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as server:
        nobody: int = server.sockets[0].getsockname()[1]
    async with TcpProxy(nobody) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
