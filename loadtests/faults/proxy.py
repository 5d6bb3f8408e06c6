"""A TCP proxy on this machine that can delay, go down and break connections, like a network."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

_CHUNK_BYTES = 64 * 1024
_CHUNKS_UNDER_WAY = 64

_Queue = asyncio.Queue[tuple[float, bytes]]


class TcpProxy:
    """Forwards to a port of this machine: ``async with TcpProxy(port) as proxy``.

    Attributes:
        delay_s: Delay of a request's bytes; answers are not delayed, so this is the delay of a call. It may change at
            any time.
        port: Port that it listens on, the same after ``down`` and ``up``.
        n_cut: Number of connections that were broken.
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
        """Start to listen."""
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._listener.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Abort every connection."""
        self.n_cut += len(self._writers) // 2  # one to the client, one to the target
        for writer in self._writers:
            writer.transport.abort()

    async def down(self) -> None:
        """Stop listening, and abort every connection."""
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
        """Forward one direction, in order, until its end; bytes in flight do not delay later ones."""
        queue: _Queue = asyncio.Queue(_CHUNKS_UNDER_WAY)
        delivery = asyncio.create_task(self._deliver(queue, sink))
        loop = asyncio.get_running_loop()
        data = b"-"
        try:
            while data and not delivery.done():
                # A broken connection ends the direction too.
                with contextlib.suppress(OSError):
                    data = await source.read(_CHUNK_BYTES)
                if source.exception() is not None:
                    data = b""
                await queue.put((loop.time() + (self.delay_s if delayed else 0.0), data))
            await delivery
        finally:
            delivery.cancel()

    async def _deliver(self, queue: _Queue, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await queue.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            try:
                if not data:
                    sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()
            except OSError:
                return  # the reader is gone
