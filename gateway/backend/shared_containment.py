"""Share the events of ``containment`` between gateways, through a short stream in Redis.

Every gateway adds its events and follows the others' with a blocking read, so that no request waits for Redis. An entry
holds a salted hash and a server's name, but nothing of a request's content. Without Redis each process contains by
itself.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, cast

import structlog
from redis.asyncio import Redis

from gateway.backend.containment import CONTAINED_S, Containment, Event
from gateway.redis_client import REDIS_ERRORS, connect
from gateway.settings import RedisSettings

_BLOCK_S = 1.0
_MOST_ENTRIES = 1_000
_AGAIN_S = 1.0
_EVENTS = frozenset({"broke", "answered", "trial"})

log = structlog.get_logger()


class SharedContainment:
    """Connects one process's ``Containment`` with those of the others."""

    def __init__(self, containment: Containment, redis: RedisSettings) -> None:
        self._containment = containment
        self._redis: Redis = connect(redis)
        self._stream = f"{redis.key_prefix}:contained"
        self._salt_key = f"{redis.key_prefix}:contained:salt"
        self._block_ms = int(min(_BLOCK_S, redis.timeout_s / 2) * 1e3) or 1
        self._own = secrets.token_hex(8)
        self._task: asyncio.Task[None] | None = None
        self._adding: set[asyncio.Task[None]] = set()
        self._closing = False
        self._lost = False

    @property
    def contained(self) -> int:
        """The number of requests contained now."""
        return self._containment.contained

    def start(self) -> None:
        """Begin to follow the stream and to add to it."""
        self._containment.publish = self._publish
        self._task = asyncio.create_task(self._follow(), name="containment")

    async def aclose(self) -> None:
        self._closing = True
        tasks = [*self._adding, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.aclose()

    async def _follow(self) -> None:
        while not self._closing:
            try:
                salt = await self._shared_salt()
                last = await self._oldest_id()
                self._containment.salt = salt
                while not self._closing:
                    last = await self._read(last)
                    self._lost = False
            except REDIS_ERRORS as error:
                self._failed(error)
                await asyncio.sleep(_AGAIN_S)

    async def _shared_salt(self) -> bytes:
        """Return the salt that all gateways use; the first gateway sets it."""
        await self._redis.set(self._salt_key, self._containment.salt, nx=True)
        salt = await self._redis.get(self._salt_key)
        if not isinstance(salt, bytes) or not 8 <= len(salt) <= 64:
            raise TypeError("the key of the salt holds something else")
        return salt

    async def _oldest_id(self) -> str:
        """Return the stream's id of a minute ago: those events still hold after a restart."""
        seconds, _ = await self._redis.time()
        return f"{max(0, int(seconds - CONTAINED_S)) * 1000}-0"

    async def _read(self, last: str) -> str:
        reply: Any = await self._redis.xread({self._stream: last}, count=_MOST_ENTRIES, block=self._block_ms)
        for _, entries in reply or ():
            for entry_id, fields in entries:
                last = entry_id.decode()
                self._take({key.decode(): value.decode() for key, value in fields.items()})
        return last

    def _take(self, fields: dict[str, str]) -> None:
        if fields.get("from") != self._own and fields.get("event") in _EVENTS:
            self._containment.record(cast(Event, fields["event"]), fields["request"], fields.get("server", ""))

    def _publish(self, event: Event, request: str, server: str) -> None:
        task = asyncio.create_task(self._add({"event": event, "request": request, "server": server, "from": self._own}))
        self._adding.add(task)
        task.add_done_callback(self._adding.discard)

    async def _add(self, fields: dict[str, str]) -> None:
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.xadd(self._stream, cast(Any, fields), maxlen=_MOST_ENTRIES, approximate=True)
                pipe.expire(self._stream, int(2 * CONTAINED_S))
                await pipe.execute()
        except REDIS_ERRORS as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._lost:
            log.warning("containment_not_shared", error=type(error).__name__)
        self._lost = True
