"""A proxy in front of a server that plays a script in the server's place when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass
from typing import Literal, Self

_CHUNK_BYTES = 64 * 1024
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")


@dataclass(frozen=True, slots=True)
class Script:
    """The reply to a request that contains ``when``, and the step after it.

    ``close``: close the connection. ``hang``: send nothing more. ``repeat``: send the last part again and again, up to
    ``repeat_bytes``. ``keep``: wait for the next request on the same connection.
    """

    parts: tuple[bytes, ...]
    when: bytes = b""
    then: Literal["close", "hang", "repeat", "keep"] = "close"
    repeat_bytes: int = 256 * 1024 * 1024


class Impostor:
    """Forwards to a port of this machine unless it has a ``script``: ``async with Impostor(port) as impostor``.

    Attributes:
        script: Played to every request that matches it; all others reach the server behind.
        prelude: Played like the script but not counted: it makes the gateway send the script's request.
        played: Number of times that the script was played.
    """

    def __init__(self, target_port: int) -> None:
        self.script: Script | None = None
        self.prelude: Script | None = None
        self.played = 0
        self.port = 0
        self._target_port = target_port
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def honest(self) -> None:
        """Forward again, and close the connections that got a scripted answer."""
        self.script = self.prelude = None
        for task in self._tasks:
            task.cancel()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        self._listener.close()
        self.honest()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
            relay = asyncio.create_task(_relay(there, writer))
            try:
                while request := await _request(reader):
                    if self.script is not None and self.script.when in request:
                        self.played += 1
                        await _play(self.script, writer)
                    elif self.prelude is not None and self.prelude.when in request:
                        await _play(self.prelude, writer)
                    else:
                        back.write(request)
                        await back.drain()
            finally:
                relay.cancel()
                back.transport.abort()
                writer.close()
        writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    """Read one request, of HTTP with its whole body: closing after half of it would discard the answer."""
    request = await reader.read(_CHUNK_BYTES)
    if b" HTTP/1.1\r\n" not in request:
        return request
    while b"\r\n\r\n" not in request:
        request += await reader.read(_CHUNK_BYTES)
    head = request.index(b"\r\n\r\n") + 4
    found = _LENGTH.search(request[:head])
    missing = head + int(found[1] if found else 0) - len(request)
    return request + (await reader.readexactly(missing) if missing > 0 else b"")


async def _play(script: Script, writer: asyncio.StreamWriter) -> None:
    for part in script.parts:
        writer.write(part)
        await writer.drain()
    if script.then == "repeat":
        for _ in range(script.repeat_bytes // len(script.parts[-1])):
            writer.write(script.parts[-1])
            await writer.drain()
    if script.then == "hang":
        await asyncio.Event().wait()
    if script.then != "keep":
        raise ConnectionAbortedError  # the connection's end


async def _relay(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    sink.close()
