"""A TLS server on loopback in front of another server: Valkey's wheel and the stubs have no TLS of their own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of a test's own, with a certificate for 127.0.0.1 and one for a client."""

    ca: trustme.CA
    ca_file: Path
    cert_file: Path
    key_file: Path

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """Write its files into a folder."""
        ca = trustme.CA()
        made = cls(ca, folder / "ca.pem", folder / "client.pem", folder / "client.key")
        ca.cert_pem.write_to_path(made.ca_file)
        client = ca.issue_cert("gateway.test")
        client.cert_chain_pems[0].write_to_path(made.cert_file)
        client.private_key_pem.write_to_path(made.key_file)
        return made


@asynccontextmanager
async def tls_front(
    authority: Authority,
    connect: Callable[[], Awaitable[Streams]],
    *,
    name: str = "127.0.0.1",
    client_needed: bool = False,
) -> AsyncIterator[int]:
    """Listens with TLS and passes bytes on; yields its port.

    Args:
        authority: Signs the server's certificate, and verifies clients'.
        connect: Opens a connection to the server behind.
        name: Name in the certificate.
        client_needed: Ask clients for a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert(name).configure_cert(context)
    if client_needed:
        authority.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await connect()
        ways = [
            asyncio.ensure_future(_copy(reader, behind_writer)),
            asyncio.ensure_future(_copy(behind_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.close()
            behind_writer.close()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
