"""The shipper's own connection to the Redis stream.

One connection, without the client's silent reconnects and retries: what ``confirm`` asserts holds only for what went
over the same connection before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from gateway.errors import bare
from gateway.redis_client import connection_options
from gateway.settings import RedisSettings

_ENTRY_ID = re.compile(rb"\d+-\d+")


def stream_key(key_prefix: str) -> str:
    """The journal's stream."""
    return f"{key_prefix}:journal"


class StreamLink:
    """Adds records to the stream.

    ``aof`` says whether Redis acknowledges what its append-only file has (WAITAOF: Valkey and Redis 7.2 on, with
    ``appendonly yes``) or only what its memory has; None before that is known.
    """

    def __init__(self, redis: RedisSettings) -> None:
        self._stream = stream_key(redis.key_prefix)
        self._max_records = redis.stream_max_records
        # Half of the socket's timeout: a slow disk is told by the reply, not by a broken connection.
        self._wait_ms = max(1, int(redis.timeout_s * 500))
        self._pool: ConnectionPool = ConnectionPool.from_url(
            redis.url,
            **connection_options(redis),
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,  # telling Redis the library's version reads files on the event loop
        )
        self._connection: AbstractConnection | None = None
        self.aof: bool | None = None

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._connection is not None and self._connection.is_connected

    async def connect(self) -> None:
        """Open the connection, if it does not stand.

        Raises:
            RedisError: Redis does not answer.
        """
        if not self.connected:
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            await connection.connect()
            self._connection = connection
            self.aof = None

    async def add(self, records: Sequence[tuple[bytes, bytes]]) -> tuple[int, ResponseError | None]:
        """Add records (id, bytes) in one round trip.

        Returns:
            How many Redis took before it first refused one, and why it did.

        Raises:
            RedisError: The connection broke; Redis may have taken any of them.
        """
        connection = self._standing()
        commands = [
            ("XADD", self._stream, "MAXLEN", "~", self._max_records, "*", "id", record_id, "data", data)
            for record_id, data in records
        ]
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        n_taken, refusal = 0, None
        for _ in commands:
            try:
                entry_id = await connection.read_response(disable_decoding=True)
            except ResponseError as error:
                refusal = refusal or bare(error)
            else:
                if not isinstance(entry_id, bytes) or not _ENTRY_ID.fullmatch(entry_id):
                    raise RedisConnectionError("what answers took a record and does not say where: it is no Redis")
                n_taken += refusal is None
        return n_taken, refusal

    async def confirm(self) -> bool:
        """Wait until what was added is in the append-only file, where Redis keeps one.

        Returns:
            False if its disk was too slow: ask again.

        Raises:
            RedisError: The connection broke, or Redis is a primary no more.
        """
        if self.aof is False:
            return True
        connection = self._standing()
        await connection.send_command("WAITAOF", 1, 0, self._wait_ms, check_health=False)
        try:
            reply = await connection.read_response(disable_decoding=True)
        except ResponseError as error:
            # A primary that has become a replica since will throw away what it took: that confirms nothing.
            if "replica" in str(error):
                raise
            self.aof = False  # no append-only file, no such command, or no permission for it
            return True
        match reply:
            case [int(synced_here), int()]:
                self.aof = True
                return synced_here >= 1
        raise RedisConnectionError("what answers does not say what is on its disk: it is no Redis")

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    def _standing(self) -> AbstractConnection:
        if self._connection is None or not self._connection.is_connected:
            raise RedisConnectionError("the connection to Redis is closed")
        return self._connection
