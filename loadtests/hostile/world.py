"""The gateway as operators run it, with impostors in front of all that it talks to, and the way to try a case on it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway.embedded.llama import LlamaServer
from gateway.embedded.redis import RedisServer
from gateway.journal.stream import stream_key
from gateway.policy import Policy
from gateway.processes.child import free_port
from loadtests.faults.world import Gateway, Stub
from loadtests.hostile.case import Answer, Case, Kind, bearer, chat, get, key, post
from loadtests.hostile.impostor import Impostor, Script
from loadtests.hostile.verdict import gauge
from loadtests.stack import Assembled

PERMITS = 4
PREFIX = "ratchet"
POLICY_KEY, STREAM_KEY = f"{PREFIX}:policy", stream_key(PREFIX)
SCOPES = {
    "chat": "scopes=chat,feedback",
    "feedback": "scopes=feedback",
    "admin": "scopes=admin",
    "limited": "scopes=chat requests_per_minute=1000000 tokens_per_minute=1000000000 races_in_flight=100",
    "single": "scopes=chat requests_per_minute=1",
    "poor": "scopes=chat tokens_per_minute=100",
}

# Short patience everywhere, so that a case of a second shows what a minute would.
SETTINGS = {
    "GATEWAY_LOG_LEVEL": "debug",
    "GATEWAY_API__OPERATORS": "admin",
    "GATEWAY_API__HEADER_TIMEOUT_S": "1",
    "GATEWAY_API__BODY_TIMEOUT_S": "1",
    "GATEWAY_API__WRITE_TIMEOUT_S": "1",
    "GATEWAY_API__KEEP_ALIVE_S": "0.5",
    "GATEWAY_BACKEND__CONNECT_TIMEOUT_S": "5",
    "GATEWAY_BACKEND__UNHEALTHY_S": "0.1",
    "GATEWAY_REWARD__TIMEOUT_S": "1",
    "GATEWAY_REDIS__TIMEOUT_S": "1",
    "GATEWAY_POLICY__REFRESH_S": "0.1",
    "GATEWAY_POLICY__EXPLORATION": "0",
    "GATEWAY_RACE__DEADLINE_S": "2",
    "GATEWAY_RACE__MAX_IN_FLIGHT": str(PERMITS),
}
_QUIET_S = 2.0  # after this much silence an answer that has begun is taken to be all
_PATIENCE_S = 60.0
_WELL_WITHIN_S = 60.0
_REST_WITHIN_S = 60.0
_UPSTREAM_S = 0.3  # some refreshes of the policy, and a round of the journal's shipper
_ASIDE_S = 1.1  # and until it asks for a key's counts again, whatever came of the last time
_FORGET = Script((b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",), when=b"POST /classify")


class NotWell(Exception):
    """The gateway does not answer good requests as it did before."""


class Canary:
    """Listens where no request may ever lead the gateway."""

    def __init__(self) -> None:
        self.visits = 0
        self.port = free_port()
        self._listener: asyncio.Server

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._visited, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()

    async def _visited(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


class World(Assembled):
    """``async with World() as world``: then ``attempt`` a case, and see that all is ``well`` after it."""

    def __init__(self, canary: Canary, kind: Kind = "tgi") -> None:
        super().__init__()
        self.canary = canary
        self.kind = kind
        self.usual_s = 0.0
        """So long did the last good request take, where a draw takes any time."""
        self.gateway: Gateway
        self.backend: Impostor
        self.reward: Impostor
        self.wire: Impostor
        """In front of Redis."""
        self.redis: Redis
        self.redis_url = ""
        self.folder = Path()
        self.address = ("127.0.0.1", 0)
        self._policy = Policy(version=1, n=PERMITS, n_max=8)

    @property
    def log(self) -> str:
        """Every line that the gateway wrote."""
        return (self.folder / "gateway.log").read_text(errors="replace")

    def memory_mb(self) -> tuple[float, float]:
        """The gateway's memory now, and the most that it ever was."""
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        now, peak = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
        assert now is not None
        assert peak is not None
        return int(now[1]) / 1024, int(peak[1]) / 1024

    async def attempt(self, case: Case) -> Answer:
        """Try it, and set everything behind the gateway right again.

        Raises:
            NotWell: What is hostile in it never came to speak.
        """
        before = await self._store(case)
        impostors = {self.backend: case.backend, self.reward: case.reward, self.wire: case.redis}
        if case.forgets:
            self.reward.prelude = _FORGET
        for impostor, script in impostors.items():
            impostor.script, impostor.played = script, 0
        try:
            if case.act is not None:
                return Answer(f"HTTP/1.1 {await case.act(self)} \r\n".encode(), True)
            if case.in_redis:
                await asyncio.sleep(_ASIDE_S if case.redis else _UPSTREAM_S)
            answer = await self.say(*case.send, pause_s=case.pause_s, hang_up=case.hang_up, reads=case.reads)
            if case.in_redis:
                await asyncio.sleep(_UPSTREAM_S)
        finally:
            unheard = [name for name, one in impostors.items() if one is not None and not name.played]
            for impostor in impostors:
                impostor.honest()
            await self._restore(before)
        if unheard:
            raise NotWell("what was to be said was never asked for")
        return answer

    async def say(self, *parts: bytes, pause_s: float = 0.0, hang_up: bool = False, reads: bool = True) -> Answer:
        """Send these bytes on a new connection and hear what comes, until it is closed or falls silent."""
        reader, writer = await asyncio.open_connection(*self.address, limit=2**20)
        sending = asyncio.create_task(_send(writer, parts, pause_s, hang_up))
        try:
            if reads:
                return await _hear(reader, sending)
            await asyncio.wait([sending])
            await asyncio.sleep(2.0)  # more than the gateway waits for who does not read
            return await _hear(reader, sending)
        finally:
            sending.cancel()
            writer.transport.abort()

    async def well(self, *, thoroughly: bool) -> None:
        """A good request gets every permit there is and a scored answer.

        ``thoroughly``: and the gateway still follows the policy, and ships its records.

        Raises:
            NotWell: It does not.
        """
        if thoroughly:
            await self.publish()
        deadline_s = time.monotonic() + _WELL_WITHIN_S
        while problem := await self._problem(thoroughly=thoroughly):
            if time.monotonic() > deadline_s:
                raise NotWell(problem)
            await asyncio.sleep(0.05)

    async def rest(self) -> None:
        """Wait until no draw is under way and Redis has every record: what memory holds then, no call needs any more.

        For a while at most; whether it has come to that is for the checks at the end to say.
        """
        deadline_s = time.monotonic() + _REST_WITHIN_S
        while time.monotonic() < deadline_s:
            await asyncio.sleep(1.1)  # gauges are looked at once a second
            metrics = await self.text("/metrics")
            if not gauge(metrics, "candidates_in_flight") and not gauge(metrics, "journal_lag_records"):
                return

    async def publish(self) -> None:
        """A new version of the policy, as a night publishes it."""
        self._policy = self._policy.successor(reason="the next")
        await self.redis.set(POLICY_KEY, self._policy.model_dump_json())

    async def text(self, path: str) -> str:
        """What an operator reads there."""
        return (await self.say(get(path, bearer("admin")))).raw.decode(errors="replace")

    async def _problem(self, *, thoroughly: bool) -> str:
        started = time.monotonic()
        answer = await self.say(post(orjson.dumps(chat(best_of=PERMITS)), caller="limited"))
        if self.kind == "llamacpp":
            self.usual_s = time.monotonic() - started
        if not answer.outcome.startswith("200"):
            problem = f"a good request got {answer.outcome}: {answer.error[-300:].decode(errors='replace')}"
            if thoroughly:
                return problem  # a policy that leads nowhere is in force until the next one is read
            raise NotWell(problem)
        body = orjson.loads(answer.raw.partition(b"\r\n\r\n")[2])
        report = body["best_of_n"]
        if (report["n"], report["selection"]) != (PERMITS, "scored"):
            return f"{report['n']} of {PERMITS} permits, {report['selection']}"
        if thoroughly and report["policy"] != self._policy.version:
            return f"policy {report['policy']}, not {self._policy.version}"
        if thoroughly and not await self._arrived(body["id"].encode()):
            return "a record does not arrive"
        return ""

    async def _arrived(self, completion_id: bytes) -> bool:
        found: Any = await self.redis.xrevrange(STREAM_KEY, count=PERMITS)
        return any(fields.get(b"id") == completion_id for _, fields in found)

    async def _store(self, case: Case) -> dict[str, bytes | None]:
        names = {str(command[1]) for command in case.stored}
        before = {name: await self.redis.dump(name) for name in names}
        for name in names:
            await self.redis.delete(name)
        for command in case.stored:
            await self.redis.execute_command(*command)  # type: ignore[no-untyped-call]
        return before

    async def _restore(self, before: dict[str, bytes | None]) -> None:
        for name, dump in before.items():
            await self.redis.delete(name)
            if dump is not None:
                await self.redis.restore(name, 0, dump)

    async def _start(self) -> None:
        running = self._running
        self.folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="ratchet-hostile-")))
        server = running.enter_context(RedisServer(self.folder / "redis"))
        self.redis_url = server.url
        self.redis = await running.enter_async_context(
            Redis.from_url(server.url, retry=Retry(NoBackoff(), 0), protocol=2, socket_timeout=60)
        )
        reward = Stub("tests.stubs.reward")
        await running.enter_async_context(reward)
        backend_port = await self._start_backend()
        redis_port = int(server.url.rpartition(":")[2].partition("/")[0])
        self.backend, self.reward, self.wire = [
            await running.enter_async_context(Impostor(port)) for port in (backend_port, reward.port, redis_port)
        ]
        await self.redis.set(POLICY_KEY, self._policy.model_dump_json())
        self.address = ("127.0.0.1", free_port())
        self.gateway = Gateway(self.folder, self._environment(), self.address[1])
        running.callback(self.gateway.stop)
        await self.gateway.begin()
        await self.well(thoroughly=True)

    async def _start_backend(self) -> int:
        """A stub of the kind's rules, or the real llama.cpp; its port."""
        if self.kind == "llamacpp":
            server = self._running.enter_context(LlamaServer(slots=PERMITS))
            return urlsplit(server.url).port or 0
        stub = Stub("tests.stubs.tgi") if self.kind == "tgi" else Stub("tests.stubs.vllm", tool_parser=True)
        await self._running.enter_async_context(stub)
        return stub.port

    def _environment(self) -> dict[str, str]:
        digests = {name: hashlib.sha256(key(name).encode()).hexdigest() for name in SCOPES}
        keys = self.folder / "keys"
        keys.write_text("".join(f"{name} sha256:{digests[name]} {options}\n" for name, options in SCOPES.items()))
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
            **SETTINGS,
            "GATEWAY_PORT": str(self.address[1]),
            "GATEWAY_API__KEYS_FILE": str(keys),
            "GATEWAY_BACKEND__KIND": self.kind,
            **({"GATEWAY_RACE__DEADLINE_S": "20"} if self.kind == "llamacpp" else {}),
            "GATEWAY_BACKEND__URLS": f"http://127.0.0.1:{self.backend.port}",
            "GATEWAY_REWARD__URL": f"http://127.0.0.1:{self.reward.port}",
            "GATEWAY_REDIS__URL": f"redis://127.0.0.1:{self.wire.port}/0",
            "GATEWAY_JOURNAL__SPOOL_DIR": str(self.folder / "spool"),
        }


async def _send(writer: asyncio.StreamWriter, parts: tuple[bytes, ...], pause_s: float, hang_up: bool) -> None:
    with contextlib.suppress(OSError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if hang_up:
            writer.write_eof()


async def _hear(reader: asyncio.StreamReader, sending: asyncio.Task[None]) -> Answer:
    heard = bytearray()
    loop = asyncio.get_running_loop()
    end_s = loop.time() + _PATIENCE_S
    while (left_s := end_s - loop.time()) > 0:
        patience_s = min(left_s, _QUIET_S) if heard and sending.done() else left_s
        try:
            data = await asyncio.wait_for(reader.read(2**16), patience_s)
        except TimeoutError:
            break
        except OSError:
            return Answer(bytes(heard), True)
        if not data:
            return Answer(bytes(heard), True)
        heard += data
    return Answer(bytes(heard), False)
