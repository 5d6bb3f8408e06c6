"""The shipper's own connection to the Redis stream.

It is one connection, without the client's silent reconnects and retries: ``confirm`` only covers records that went over
the same connection before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from gateway.errors import strip_traceback
from gateway.journal.stream import stream_key
from gateway.redis_client import connection_options, refuse_modes
from gateway.settings import RedisSettings

_ENTRY_ID = re.compile(rb"\d+-\d+")
_MODE = re.compile(rb"(?m)^(redis_mode|server_mode|cluster_enabled):(\w+)")


class StreamFull(RedisError):
    """The stream holds as many records as the settings allow; no night has collected them."""


class StreamLink:
    """Adds records to the stream, up to the number that the settings allow. It never removes one.

    Every method raises ``RedisError`` when the connection breaks or the server is not a Redis.

    ``n_records`` is the stream's length as this connection last saw it. Other gateways add records too, so the limit
    can be exceeded by a batch of each.

    ``aof`` is True if Redis acknowledges what its append-only file has (WAITAOF: Valkey and Redis 7.2 on, with
    ``appendonly yes``), False if only what its memory has, None before that is known.
    """

    def __init__(self, redis: RedisSettings) -> None:
        self._stream = stream_key(redis.key_prefix)
        self.max_records = redis.stream_max_records
        # Half of the socket's timeout: a slow disk then shows in the reply, not as a broken connection.
        self._wait_ms = max(1, int(redis.timeout_s * 500))
        self._pool: ConnectionPool = ConnectionPool.from_url(
            redis.url,
            **connection_options(redis),
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # sending the library's version would read files on the event loop
        )
        self._connection: AbstractConnection | None = None
        self.aof: bool | None = None
        self.n_records = 0

    @property
    def connected(self) -> bool:
        return self._connection is not None and self._connection.is_connected

    async def connect(self) -> None:
        """Open the connection unless it is open; raise UnsupportedRedis for a cluster's node or a Sentinel."""
        if not self.connected:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()
            self._connection = connection
            self.aof = None
            await self._refuse_unsupported(connection)
            await self.read_length()

    async def read_length(self) -> None:
        connection = self._open_connection()
        await connection.send_command("XLEN", self._stream, check_health=False)
        self.n_records = await self._length(connection)

    async def add(
        self, records: Sequence[tuple[bytes, bytes]], *, limited: bool = True
    ) -> tuple[int, RedisError | None]:
        """Add records (id, bytes) in one round trip, as many as the limit allows.

        When the connection breaks, Redis may have taken any of them.

        Returns:
            The number of records taken before Redis first refused one, and its error. Without an error the number can
            be smaller than given: only that many fitted.
        """
        connection = self._open_connection()
        if limited:
            if self.n_records >= self.max_records:
                await self.read_length()
            records = records[: max(0, self.max_records - self.n_records)]
            if not records:
                return 0, StreamFull(f"the stream holds {self.n_records} records")
        commands: list[tuple[str | bytes, ...]] = [
            ("XADD", self._stream, "*", "id", record_id, "data", data) for record_id, data in records
        ]
        commands.append(("XLEN", self._stream))
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        n_taken, refusal = 0, None
        for _ in records:
            try:
                entry_id = await connection.read_response(disable_decoding=True)
            except ResponseError as error:
                refusal = refusal or strip_traceback(error)
            else:
                if not isinstance(entry_id, bytes) or not _ENTRY_ID.fullmatch(entry_id):
                    raise RedisConnectionError("the server took a record and returned no entry id: it is not a Redis")
                n_taken += refusal is None
        self.n_records = await self._length(connection)
        return n_taken, refusal

    async def confirm(self) -> bool:
        """Wait until the added records are in the append-only file, if Redis has one.

        Returns:
            False if its disk was too slow: call again. A Redis that is no longer a primary raises RedisError.
        """
        if self.aof is False:
            return True
        connection = self._open_connection()
        await connection.send_command("WAITAOF", 1, 0, self._wait_ms, check_health=False)
        try:
            reply = await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            # A primary that has become a replica will drop the records it took, so this confirms nothing.
            if "replica" in str(error):
                raise
            self.aof = False  # no append-only file, no such command, or no permission for it
            return True
        match reply:
            case [int(synced_here), int()]:
                self.aof = True
                return synced_here >= 1
        raise RedisConnectionError("the server does not tell what is on its disk: it is not a Redis")

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _length(self, connection: AbstractConnection) -> int:
        """Read the reply to XLEN; 0 if Redis refuses it, so that only its memory limits the stream."""
        try:
            reply = await connection.read_response(disable_decoding=True)
        except ResponseError:
            return 0
        if not isinstance(reply, int):
            raise RedisConnectionError("the server does not tell the length of the stream: it is not a Redis")
        return reply

    async def _refuse_unsupported(self, connection: AbstractConnection) -> None:
        await connection.send_command("INFO", check_health=False)
        try:
            reply = await connection.read_response(disable_decoding=True)
        except ResponseError:
            return  # this user or proxy may not call INFO
        if isinstance(reply, bytes):
            refuse_modes({name.decode(): value.decode() for name, value in _MODE.findall(reply)})

    def _open_connection(self) -> AbstractConnection:
        if self._connection is None or not self._connection.is_connected:
            raise RedisConnectionError("the connection to Redis is closed")
        return self._connection
