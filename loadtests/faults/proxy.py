"""A TCP proxy on this machine that can be slow, go down and break connections: the network's own faults."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

_CHUNK_BYTES = 64 * 1024
_CHUNKS_UNDER_WAY = 64

_Line = asyncio.Queue[tuple[float, bytes]]


class TcpProxy:
    """Forwards to a port of this machine: ``async with TcpProxy(port) as proxy``.

    Attributes:
        delay_s: How much later a request's bytes arrive; answers are not held up, so this is the delay of a call.
            May be changed at any time.
        port: Where it listens, the same after ``down`` and ``up``.
        n_cut: Connections that were broken.
    """

    def __init__(self, target_port: int, *, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.port = 0
        self.n_cut = 0
        self._target_port = target_port
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def up(self) -> None:
        """Listen."""
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break every connection, without a goodbye."""
        self.n_cut += len(self._writers) // 2  # one to the client, one to the target
        for writer in self._writers:
            writer.transport.abort()

    async def down(self) -> None:
        """Listen no more, and break every connection."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(back)
        try:
            await asyncio.gather(self._carry(reader, back, delayed=True), self._carry(there, writer, delayed=False))
        finally:
            for one in (writer, back):
                one.close()
                self._writers.discard(one)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, delayed: bool) -> None:
        """One direction, in order, until its end; bytes under way do not delay those behind them."""
        line: _Line = asyncio.Queue(_CHUNKS_UNDER_WAY)
        delivery = asyncio.create_task(self._deliver(line, sink))
        loop = asyncio.get_running_loop()
        data = b"-"
        try:
            while data and not delivery.done():
                # A broken connection is an end as well.
                with contextlib.suppress(OSError):
                    data = await source.read(_CHUNK_BYTES)
                if source.exception() is not None:
                    data = b""
                await line.put((loop.time() + (self.delay_s if delayed else 0.0), data))
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, line: _Line, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await line.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            try:
                if not data:
                    sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()
            except OSError:
                return  # who should read it is gone
