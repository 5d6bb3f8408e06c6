"""The policy's place in Redis: the current document and its history.

Documents are written by compare-and-set, so that of two writers one wins and the other must read again. A Redis that
is out of memory takes them all the same: a rollback must reach it, and a few kilobytes do not endanger it.
"""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, WatchError

from gateway.errors import PolicyError
from gateway.policy.document import Policy
from gateway.redis_client import REDIS_ERRORS, connect, refuse_unsupported, run_when_full
from gateway.settings import RedisSettings

_HISTORY = 1_000
# KEYS: the policy, its history. ARGV: the policy that must be current (empty: none), the new one, the last index kept.
_PUBLISH = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('LTRIM', KEYS[2], 0, ARGV[3])
return 1
"""
_RESTORE = "return redis.call('SET', KEYS[1], ARGV[1], 'NX')"


class PublishedPolicy:
    def __init__(self, settings: RedisSettings) -> None:
        self._key = f"{settings.key_prefix}:policy"
        self._history_key = f"{settings.key_prefix}:policy:history"
        self._redis: Redis = connect(settings)
        self.checked = False
        """A single Redis answers, not a Redis Cluster or a Sentinel."""

    async def read(self) -> bytes | None:
        """Return the current document, None if there is none.

        Raises:
            REDIS_ERRORS: Redis does not answer, or is a Redis Cluster or a Sentinel (``UnsupportedRedis``).
        """
        if not self.checked:
            await refuse_unsupported(self._redis)
            self.checked = True
        document = await self._redis.get(self._key)
        if not isinstance(document, bytes | None):
            raise TypeError("GET returned no string")
        return document

    async def restore(self, document: str) -> None:
        """Write the document into a Redis that has none, unless another gateway was faster.

        Raises:
            REDIS_ERRORS: Redis does not answer.
        """
        try:
            await self._redis.set(self._key, document, nx=True)
        except OutOfMemoryError:
            await run_when_full(self._redis, _RESTORE, keys=[self._key], args=[document])

    async def publish(self, policy: Policy, document: str, *, last_version: int) -> None:
        """Make the document the current one and put it into the history.

        Args:
            policy: The new policy.
            document: The new policy as JSON.
            last_version: Version that ``policy`` follows if the current document is unreadable or lost. Versions must
                not start again: records name policies by version.

        Raises:
            PolicyError: The version does not follow the current one, another policy was published at the same time,
                or Redis does not answer.
        """
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                await pipe.watch(self._key)
                found = await pipe.get(self._key)
                current = None if found is None else _parse(found)
                version = last_version if current is None else current.version
                if policy.version != version + 1:
                    raise PolicyError(f"version {policy.version} does not follow the published version {version}")
                pipe.multi()  # type: ignore[no-untyped-call]
                pipe.set(self._key, document)
                pipe.lpush(self._history_key, document)
                pipe.ltrim(self._history_key, 0, _HISTORY - 1)
                try:
                    await pipe.execute()
                except OutOfMemoryError:
                    await self._publish_when_full(found, document)
        except WatchError as error:
            raise PolicyError("another policy was published at the same time: read it and try again") from error
        except REDIS_ERRORS as error:
            raise PolicyError(f"not published: Redis said {type(error).__name__}") from error

    async def history(self, limit: int) -> list[Policy]:
        """Return the published policies, newest first. Malformed documents are skipped.

        Raises:
            PolicyError: Redis does not answer.
        """
        try:
            documents = await self._redis.lrange(self._history_key, 0, limit - 1)
        except REDIS_ERRORS as error:
            raise PolicyError(f"no history: Redis said {type(error).__name__}") from error
        return [policy for document in documents if (policy := _parse(document)) is not None]

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _publish_when_full(self, found: bytes | str | None, document: str) -> None:
        before = found.decode() if isinstance(found, bytes) else found or ""
        keys, args = [self._key, self._history_key], [before, document, str(_HISTORY - 1)]
        if not await run_when_full(self._redis, _PUBLISH, keys=keys, args=args):
            raise WatchError("another policy was published")


def _parse(document: bytes | str) -> Policy | None:
    try:
        return Policy.parse(document)
    except PolicyError:
        return None
