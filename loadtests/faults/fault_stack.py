"""The stack of a fault scenario: the gateway, its Redis and its stubs as processes that can be killed and frozen."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping, Set
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import psutil

from distill.dataset.archive import Archive
from distill.run_dir import RunDir, runs
from gateway.processes.child import free_port
from loadtests.faults.callers import Callers
from loadtests.faults.proxy import TcpProxy
from loadtests.processes import GatewayProcess, RestartableRedis, RestartableStub, gateway_environment
from loadtests.records import StreamRecords
from loadtests.stack import Assembled

LATENCY_MS = 50.0
DEADLINE_S = 4.0
_START_TIMEOUT_S = 120.0
_POLL_S = 0.05
_COLLECTS = 5
_CLOCK_LOOKS = 20
_CLOCK_TOLERANCE_S = 60.0

# Short timeouts everywhere, so that a scenario takes seconds rather than minutes.
SETTINGS = {
    "GATEWAY_LOG_LEVEL": "warning",
    "GATEWAY_BACKEND__CONNECT_TIMEOUT_S": "1",
    "GATEWAY_BACKEND__UNHEALTHY_S": "2",
    "GATEWAY_REWARD__TIMEOUT_S": "1",
    "GATEWAY_REDIS__TIMEOUT_S": "1",
    "GATEWAY_POLICY__EXPLORATION": "0",
    "GATEWAY_RACE__DEADLINE_S": str(DEADLINE_S),
}

# Debian's, or the one that `make faults` installs.
_FAKETIME = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("data/faults").absolute().glob("**/libfaketimeMT.so.1"),
    *Path("data/faults").absolute().glob("**/libfaketime.so.1"),
)


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit code and output of a command."""

    code: int
    output: str


class FaultStack(Assembled):
    """A fresh stack for one scenario, and clients that start at once: ``async with FaultStack(...) as stack``.

    Args:
        callers: Requests in flight.
        n: N of every request.
        fault_s: Duration of a fault.
        pause_s: Duration of Redis's freeze.
        replicas: Number of backends.
        backend: Module of the backends' stub.
        proxied: The part behind a proxy: ``redis``, or ``backend`` (the first of them).
        faked_clock: ``set_clock`` can set the gateway's wall clock.
        settings: More settings of the gateway; "{folder}" in a value is this stack's folder.
        knobs: More knobs of the backends.
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
        self.readiness = ""
        """The gateway's readiness under the fault."""
        self.as_planned = True
        """False if a fault finds that it did not strike, or that a process did not end as planned."""
        known: dict[str, object] = {"latency_ms": LATENCY_MS, **(knobs or {})}
        if backend == "tests.stubs.tgi":
            known.setdefault("max_concurrent_requests", 4096)
        self.backends = [RestartableStub(backend, **known) for _ in range(replicas)]
        self.reward = RestartableStub("tests.stubs.reward")
        self.redis: RestartableRedis
        self.gateway: GatewayProcess
        self.records: StreamRecords
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
        return Archive(self.folder / "archive")

    async def hold(self) -> None:
        """Let the fault last, and read the gateway's readiness near its end."""
        await asyncio.sleep(self.fault_s)
        self.readiness = await self.gateway.readiness()

    async def run(self, *words: str, clock_days: int = 0) -> Ended:
        """Run ``python -m`` with these words and the gateway's own settings.

        Args:
            words: The module and its arguments.
            clock_days: Days that this command's clock is ahead.
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
            RuntimeError: It failed; with the end of its log.
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
        """Collect until the archive holds these ids, or too often; return those that it does not hold."""
        for _ in range(_COLLECTS):
            self.as_planned &= (await self.run("distill", "collect")).code == 0
            ids = await asyncio.to_thread(lambda: {record.id for record in self.archive.completions()})
            if not (missing := set(wanted) - ids):
                break
        return missing

    def limit_files(self, n_bytes: int) -> None:
        """Let no file of the gateway grow beyond this size, like a full disk; -1 lifts the limit."""
        process = psutil.Process(self.gateway.pid)
        _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (n_bytes, hard))

    def spool_bytes(self) -> int:
        """Return the size of the spool's largest segment."""
        return max((path.stat().st_size for path in self.folder.glob("spool/worker-*/*.seg")), default=0)

    def set_clock(self, offset_s: int) -> None:
        """Set the gateway's wall clock apart from the machine's."""
        (self.folder / "clock").write_text(f"{offset_s:+d}s\n")

    async def clock_shows(self, offset_s: int) -> bool:
        """Return whether the gateway's answers have that clock's time. Both cache it, so this may take seconds."""
        for _ in range(_CLOCK_LOOKS):
            if abs(await self.gateway.clock_ahead_s() - offset_s) < _CLOCK_TOLERANCE_S:
                return True
            await asyncio.sleep(0.5)
        return False

    async def _start(self) -> None:
        running, folder = self._running, tempfile.TemporaryDirectory(prefix="ratchet-faults-")
        self.folder = Path(running.enter_context(folder))
        self.redis = RestartableRedis(self.folder / "redis")
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
        self.records = await running.enter_async_context(aclosing(StreamRecords(self.redis.url)))
        callers, n = self._load
        self.callers = Callers(self.gateway.url, callers=callers, n=n)

    def _new_gateway(self, urls: list[str], redis_port: int) -> GatewayProcess:
        port = free_port()
        settings = {
            "GATEWAY_PORT": str(port),
            "GATEWAY_BACKEND__URLS": ",".join(urls),
            "GATEWAY_REWARD__URL": self.reward.url,
            "GATEWAY_REDIS__URL": f"redis://127.0.0.1:{redis_port}/0",
            "GATEWAY_JOURNAL__SPOOL_DIR": str(self.folder / "spool"),
            **{name: value.replace("{folder}", str(self.folder)) for name, value in self._settings.items()},
        }
        environment = gateway_environment(settings)
        self._environment = dict(environment)
        if self._faked_clock:
            self.set_clock(0)
            environment |= {
                "LD_PRELOAD": str(_FAKETIME[0]),
                "FAKETIME_TIMESTAMP_FILE": str(self.folder / "clock"),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # a change of a machine's clock does not move that one
                # libfaketime's workaround for timed waits makes each of this gateway's last for seconds.
                "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            }
        return GatewayProcess(self.folder, environment, port)


def clock_can_be_faked() -> bool:
    """Return whether libfaketime is installed."""
    return bool(_FAKETIME)
