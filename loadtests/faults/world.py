"""Everything a fault needs: the gateway, its Redis and its stubs as child processes that can be killed and frozen."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import redis.asyncio

from distill.dataset.archive import Archive
from distill.run_dir import RunDir, runs
from gateway.embedded.redis import RedisServer
from gateway.journal.stream import stream_key
from gateway.processes.child import ChildProcess, free_port
from loadtests.faults.arrivals import Arrivals
from loadtests.faults.callers import Callers
from loadtests.faults.proxy import TcpProxy
from loadtests.stack import Assembled
from tests.stubs.process import StubProcess

LATENCY_MS = 50.0
DEADLINE_S = 4.0
_START_TIMEOUT_S = 120.0
_POLL_S = 0.05
_COLLECTS = 5
_CLOCK_LOOKS = 20
_CLOCK_TOLERANCE_S = 60.0

# Short patience everywhere, so that a scenario of seconds shows what minutes would.
SETTINGS = {
    "GATEWAY_LOG_LEVEL": "warning",
    "GATEWAY_BACKEND__CONNECT_TIMEOUT_S": "1",
    "GATEWAY_BACKEND__UNHEALTHY_S": "2",
    "GATEWAY_REWARD__TIMEOUT_S": "1",
    "GATEWAY_REDIS__TIMEOUT_S": "1",
    "GATEWAY_POLICY__EXPLORATION": "0",
    "GATEWAY_RACE__DEADLINE_S": str(DEADLINE_S),
}

# Debian's, or what `make faults` brings.
_FAKETIME = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("data/faults").absolute().glob("**/libfaketimeMT.so.1"),
    *Path("data/faults").absolute().glob("**/libfaketime.so.1"),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    output: str


class Redis(RedisServer):
    """A Redis that keeps an append-only file, on a port that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.folder = folder
        super().__init__(folder, port=self.port)

    async def begin(self) -> None:
        """Start it."""
        await asyncio.to_thread(self.start)

    async def kill(self) -> None:
        """Kill -9."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self.stop)

    def wipe(self) -> None:
        """Throw its data away; it must not run."""
        shutil.rmtree(self.folder / "appendonlydir")

    async def command(self, *words: str) -> Any:
        """Have it do something."""
        async with aclosing(redis.asyncio.Redis(port=self.port)) as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]

    async def used_bytes(self) -> int:
        """What its data takes now."""
        return int((await self.command("INFO", "memory"))["used_memory"])

    async def length(self) -> int:
        """Records in the journal's stream."""
        return int(await self.command("XLEN", stream_key("ratchet")))


class Stub(StubProcess):
    """A stub on a port that outlives it."""

    def __init__(self, module: str, **knobs: object) -> None:
        self.port = free_port()
        self._module, self._knobs = module, knobs
        super().__init__(module, port=self.port, **knobs)

    def restart(self, **changes: object) -> None:
        """End it, and start it with these knobs changed."""
        self.stop()
        super().__init__(self._module, port=self.port, **{**self._knobs, **changes})
        self.start()


class Gateway:
    """``python -m gateway serve`` on a port that outlives it."""

    def __init__(self, folder: Path, environment: Mapping[str, str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._child = ChildProcess(
            "gateway",
            [sys.executable, "-m", "gateway", "serve"],
            log_path=folder / "gateway.log",
            env=environment,
            stop_timeout_s=40.0,
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child.pid is not None
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._child.pid is not None and self._child.exit_status is None

    async def begin(self) -> None:
        """Start it and wait until it serves.

        Raises:
            RuntimeError: It ended, or was not ready in time; with the end of its log.
        """
        self._child.start()
        deadline = time.monotonic() + _START_TIMEOUT_S
        while await self.readiness() not in {"ready", "degraded"}:
            if self._child.exit_status is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the gateway does not serve; {self._child.log_tail()}")
            await asyncio.sleep(_POLL_S)

    async def readiness(self) -> str:
        """``ready``, ``degraded``, ``not ready``, or ``away`` where nobody answers."""
        patience = aiohttp.ClientTimeout(total=3.0)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience) as session,
                session.get(self.url + "/health/ready") as response,
            ):
                return str((await response.json())["status"])
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            return "away"

    async def clock_ahead_s(self) -> float:
        """How far its wall clock is ahead of this machine's, by what it writes into its answers."""
        async with aiohttp.ClientSession() as session, session.get(self.url + "/health/live") as response:
            return parsedate_to_datetime(response.headers["date"]).timestamp() - time.time()

    async def kill(self) -> None:
        """Kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        await asyncio.to_thread(self._child.wait)

    async def terminate(self) -> int:
        """SIGTERM, and wait for its end; its exit status."""
        os.kill(self.pid, signal.SIGTERM)
        return await asyncio.to_thread(self._child.wait)

    def stop(self) -> None:
        """End it. Harmless when it does not run."""
        self._child.stop()


class World(Assembled):
    """One fresh stack for one scenario, and the clients on it, which begin at once: ``async with World(...) as world``.

    Args:
        callers: Requests in flight.
        n: Best of how many.
        fault_s: How long a fault lasts.
        pause_s: How long a frozen Redis stays frozen.
        replicas: Backends.
        backend: Module of the stub that they are.
        proxied: What is reached through a proxy: ``redis``, ``backend`` (the first of them).
        faked_clock: The gateway's wall clock is one that ``set_clock`` can set.
        settings: More of the gateway's; "{folder}" in a value is this world's folder.
        knobs: More of the backends'.
    """

    def __init__(
        self,
        *,
        callers: int,
        n: int,
        fault_s: float,
        pause_s: float,
        replicas: int = 1,
        backend: str = "tests.stubs.tgi",
        proxied: str = "",
        faked_clock: bool = False,
        settings: Mapping[str, str] | None = None,
        knobs: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.fault_s = fault_s
        self.pause_s = pause_s
        self.told = ""
        """What readiness said under the fault."""
        self.as_meant = True
        """Set by a fault that looks for itself whether it struck, or how a process ended."""
        known: dict[str, object] = {"latency_ms": LATENCY_MS, **(knobs or {})}
        if backend == "tests.stubs.tgi":
            known.setdefault("max_concurrent_requests", 4096)
        self.backends = [Stub(backend, **known) for _ in range(replicas)]
        self.reward = Stub("tests.stubs.reward")
        self.redis: Redis
        self.gateway: Gateway
        self.arrivals: Arrivals
        self.callers: Callers
        self.proxy: TcpProxy
        self._load = (callers, n)
        self._proxied = proxied
        self._faked_clock = faked_clock
        self._settings = {**SETTINGS, **(settings or {})}
        self.folder = Path()
        self._environment: dict[str, str] = {}

    @property
    def archive(self) -> Archive:
        """Where ``run`` has records collected."""
        return Archive(self.folder / "archive")

    async def hold(self) -> None:
        """Let the fault last, and ask the gateway near its end how it is."""
        await asyncio.sleep(self.fault_s)
        self.told = await self.gateway.readiness()

    async def run(self, *words: str, clock_days: int = 0) -> Ended:
        """Run ``python -m`` with these words and the gateway's own settings.

        Args:
            words: The module and its arguments.
            clock_days: How far this command's clock is ahead.
        """
        environment = self._environment | {
            "COLUMNS": "200",
            "DISTILL_DATASET__ARCHIVE_DIR": str(self.archive.folder),
            "DISTILL_DATASET__KEEP_DAYS": "30",
        }
        if clock_days:
            environment |= {"LD_PRELOAD": str(_FAKETIME[0]), "FAKETIME": f"{clock_days:+d}d"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *words),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode is not None
        return Ended(process.returncode, output.decode())

    async def night(self) -> RunDir:
        """Run a small night to its end, on a tiny base; its adapter answers with few different words.

        Raises:
            RuntimeError: It failed; with what it said.
        """
        from tests.distill.nightly.attempts import attempt
        from tests.distill.nightly.fleet import environment
        from tests.distill.training.tiny import tiny_base

        folder = self.folder / "nights"
        base = folder / "base"
        if not base.exists():
            await asyncio.to_thread(tiny_base, base)
        url = self.backends[0].url
        small = environment(folder, tgi_url=url, reward_url=self.reward.url, redis_url=self.redis.url, model=base)
        variables = {**self._environment, **small, **self._settings, "ATTEMPT_ADAPTERS": "dull"}
        variables |= {"DISTILL_DATASET__ARCHIVE_DIR": str(self.archive.folder), "DISTILL_EVALUATION__PROMPTS": "16"}
        variables |= {"DISTILL_DATASET__MAX_EXAMPLES": "48", "DISTILL_EVALUATION__TEMPERATURES": "0.7"}
        code = await asyncio.to_thread(attempt, variables)
        if code:
            raise RuntimeError(f"the night ended with {code}: {(folder / 'attempts.log').read_text()[-2000:]}")
        return runs(folder / "runs")[-1]

    async def archive_all(self, wanted: Set[str]) -> set[str]:
        """Collect until the archive holds these ids, or too often; returns those that it does not hold."""
        for _ in range(_COLLECTS):
            self.as_meant &= (await self.run("distill", "collect")).code == 0
            ids = await asyncio.to_thread(lambda: {record.id for record in self.archive.completions()})
            if not (missing := set(wanted) - ids):
                break
        return missing

    def limit_files(self, n_bytes: int) -> None:
        """No file of the gateway may grow beyond this any more; -1 lifts that. What a full disk is to a process."""
        process = psutil.Process(self.gateway.pid)
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (n_bytes, hard))

    def spool_bytes(self) -> int:
        """Size of the spool's largest segment."""
        return max((path.stat().st_size for path in self.folder.glob("spool/worker-*/*.seg")), default=0)

    def set_clock(self, offset_s: int) -> None:
        """Move the gateway's wall clock away from the machine's."""
        (self.folder / "clock").write_text(f"{offset_s:+d}s\n")

    async def clock_shows(self, offset_s: int) -> bool:
        """Whether the gateway's answers bear that clock's time; if need be after some seconds, for both cache it."""
        for _ in range(_CLOCK_LOOKS):
            if abs(await self.gateway.clock_ahead_s() - offset_s) < _CLOCK_TOLERANCE_S:
                return True
            await asyncio.sleep(0.5)
        return False

    async def _start(self) -> None:
        running, folder = self._running, tempfile.TemporaryDirectory(prefix="ratchet-faults-")
        self.folder = Path(running.enter_context(folder))
        self.redis = Redis(self.folder / "redis")
        await self.redis.begin()
        running.callback(self.redis.stop)
        for stub in [*self.backends, self.reward]:
            await running.enter_async_context(stub)
        urls = [stub.url for stub in self.backends]
        redis_port = self.redis.port
        if self._proxied:
            target = redis_port if self._proxied == "redis" else self.backends[0].port
            self.proxy = await running.enter_async_context(TcpProxy(target))
            if self._proxied == "redis":
                redis_port = self.proxy.port
            else:
                urls[0] = f"http://127.0.0.1:{self.proxy.port}"
        self.gateway = self._new_gateway(urls, redis_port)
        running.callback(self.gateway.stop)
        await self.gateway.begin()
        self.arrivals = await running.enter_async_context(aclosing(Arrivals(self.redis.url)))
        callers, n = self._load
        self.callers = Callers(self.gateway.url, callers=callers, n=n)

    def _new_gateway(self, urls: list[str], redis_port: int) -> Gateway:
        port = free_port()
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")},
            "GATEWAY_PORT": str(port),
            "GATEWAY_BACKEND__URLS": ",".join(urls),
            "GATEWAY_REWARD__URL": self.reward.url,
            "GATEWAY_REDIS__URL": f"redis://127.0.0.1:{redis_port}/0",
            "GATEWAY_JOURNAL__SPOOL_DIR": str(self.folder / "spool"),
            **{name: value.replace("{folder}", str(self.folder)) for name, value in self._settings.items()},
        }
        self._environment = dict(environment)
        if self._faked_clock:
            self.set_clock(0)
            environment |= {
                "LD_PRELOAD": str(_FAKETIME[0]),
                "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # no clock change of a machine moves that one
                # libfaketime's workaround for timed waits makes each of this gateway's last for seconds.
                "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            }
        return Gateway(self.folder, environment, port)


def clock_can_be_faked() -> bool:
    """Whether libfaketime is here."""
    return bool(_FAKETIME)


def freeze(pid: int | None) -> None:
    """Stop a process: its connections stand, and nothing answers."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int | None) -> None:
    """Let it go on."""
    assert pid is not None
    os.kill(pid, signal.SIGCONT)
