"""The gateway as operators run it, with impostors in front of everything that it calls, to try cases on."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
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
from loadtests.hostile.case import Answer, Case, Kind, bearer, chat, get, key, post
from loadtests.hostile.impostor import Impostor, Script
from loadtests.hostile.verdict import gauge
from loadtests.processes import GatewayProcess, RestartableStub, gateway_environment
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

# Short timeouts everywhere, so that a case takes seconds rather than minutes.
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
_QUIET_S = 2.0  # an answer that is silent for so long has ended
_PATIENCE_S = 60.0
_WELL_WITHIN_S = 60.0
_REST_WITHIN_S = 60.0
_UPSTREAM_S = 0.3  # some refreshes of the policy, and a round of the journal's shipper
_LIMITS_AGAIN_S = 1.1  # until the gateway asks Redis for a key's counts again, after a failure too
_FORGET = Script((b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",), when=b"POST /classify")


class NotWell(Exception):
    """The gateway does not answer good requests as before."""


class Canary:
    """Listens on a port to which no request may ever lead the gateway."""

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


class HostileStack(Assembled):
    """The stack: ``async with HostileStack(...) as stack``, then ``attempt`` a case, and check with ``well``."""

    def __init__(self, canary: Canary, kind: Kind = "tgi") -> None:
        super().__init__()
        self.canary = canary
        self.kind = kind
        self.usual_s = 0.0
        """Seconds of the last good request, if a draw takes time."""
        self.gateway: GatewayProcess
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
        return (self.folder / "gateway.log").read_text(errors="replace")

    def memory_mb(self) -> tuple[float, float]:
        """Return the gateway's memory now, and its peak."""
        status = Path(f"/proc/{self.gateway.pid}/status").read_text()
        now, peak = (re.search(rf"{name}:\s+(\d+) kB", status) for name in ("VmRSS", "VmHWM"))
        assert now is not None
        assert peak is not None
        return int(now[1]) / 1024, int(peak[1]) / 1024

    async def attempt(self, case: Case) -> Answer:
        """Try a case, and restore everything behind the gateway.

        Raises:
            NotWell: The hostile part was never played.
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
                await asyncio.sleep(_LIMITS_AGAIN_S if case.redis else _UPSTREAM_S)
            answer = await self.say(*case.send, pause_s=case.pause_s, hang_up=case.hang_up, reads=case.reads)
            if case.in_redis:
                await asyncio.sleep(_UPSTREAM_S)
        finally:
            not_played = [name for name, one in impostors.items() if one is not None and not name.played]
            for impostor in impostors:
                impostor.honest()
            await self._restore(before)
        if not_played:
            raise NotWell("the script was never played: nothing asked for it")
        return answer

    async def say(self, *parts: bytes, pause_s: float = 0.0, hang_up: bool = False, reads: bool = True) -> Answer:
        """Send these bytes on a new connection and return the answer, up to its end or to silence."""
        reader, writer = await asyncio.open_connection(*self.address, limit=2**20)
        sending = asyncio.create_task(_send(writer, parts, pause_s, hang_up))
        try:
            if reads:
                return await _receive(reader, sending)
            await asyncio.wait([sending])
            await asyncio.sleep(2.0)  # longer than the gateway waits for a caller that does not read
            return await _receive(reader, sending)
        finally:
            sending.cancel()
            writer.transport.abort()

    async def well(self, *, thoroughly: bool) -> None:
        """Check that a good request gets every permit and a scored answer.

        ``thoroughly``: also check that the gateway follows the policy and ships its records.

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
        """Wait until no draw is in flight and Redis has every record, so that memory holds nothing for a call.

        It waits for a limited time; the checks at the end report if that was not enough.
        """
        deadline_s = time.monotonic() + _REST_WITHIN_S
        while time.monotonic() < deadline_s:
            await asyncio.sleep(1.1)  # gauges are refreshed once a second
            metrics = await self.text("/metrics")
            if not gauge(metrics, "candidates_in_flight") and not gauge(metrics, "journal_lag_records"):
                return

    async def publish(self) -> None:
        """Publish a new version of the policy, as a night does."""
        self._policy = self._policy.successor(reason="the next")
        await self.redis.set(POLICY_KEY, self._policy.model_dump_json())

    async def text(self, path: str) -> str:
        """Return an operator's view of a route."""
        return (await self.say(get(path, bearer("admin")))).raw.decode(errors="replace")

    async def _problem(self, *, thoroughly: bool) -> str:
        started = time.monotonic()
        answer = await self.say(post(orjson.dumps(chat(best_of=PERMITS)), caller="limited"))
        if self.kind == "llamacpp":
            self.usual_s = time.monotonic() - started
        if not answer.outcome.startswith("200"):
            problem = f"a good request got {answer.outcome}: {answer.error[-300:].decode(errors='replace')}"
            if thoroughly:
                return problem  # a policy with a dead URL is in force until the next one is read
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
        reward = RestartableStub("tests.stubs.reward")
        await running.enter_async_context(reward)
        backend_port = await self._start_backend()
        redis_port = int(server.url.rpartition(":")[2].partition("/")[0])
        self.backend, self.reward, self.wire = [
            await running.enter_async_context(Impostor(port)) for port in (backend_port, reward.port, redis_port)
        ]
        await self.redis.set(POLICY_KEY, self._policy.model_dump_json())
        self.address = ("127.0.0.1", free_port())
        self.gateway = GatewayProcess(self.folder, self._environment(), self.address[1])
        running.callback(self.gateway.stop)
        await self.gateway.begin()
        await self.well(thoroughly=True)

    async def _start_backend(self) -> int:
        """Start a stub with the kind's rules, or the real llama.cpp; return its port."""
        if self.kind == "llamacpp":
            server = self._running.enter_context(LlamaServer(slots=PERMITS))
            return urlsplit(server.url).port or 0
        stub = (
            RestartableStub("tests.stubs.tgi")
            if self.kind == "tgi"
            else RestartableStub("tests.stubs.vllm", tool_parser=True)
        )
        await self._running.enter_async_context(stub)
        return stub.port

    def _environment(self) -> dict[str, str]:
        digests = {name: hashlib.sha256(key(name).encode()).hexdigest() for name in SCOPES}
        keys = self.folder / "keys"
        keys.write_text("".join(f"{name} sha256:{digests[name]} {options}\n" for name, options in SCOPES.items()))
        settings = {
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
        return gateway_environment(settings)


async def _send(writer: asyncio.StreamWriter, parts: tuple[bytes, ...], pause_s: float, hang_up: bool) -> None:
    with contextlib.suppress(OSError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if hang_up:
            writer.write_eof()


async def _receive(reader: asyncio.StreamReader, sending: asyncio.Task[None]) -> Answer:
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
