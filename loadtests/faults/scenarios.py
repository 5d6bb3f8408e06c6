"""The scenarios: one function for each fault, which strikes under load, lasts a while, and heals."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from loadtests.faults import fleet_side, night_side
from loadtests.faults.callers import NORMAL
from loadtests.faults.fault_stack import DEADLINE_S, FaultStack, clock_can_be_faked
from loadtests.processes import freeze, thaw

AN_HOUR_S = 3600

# Outcomes that clients may see in addition to scored answers.
NOTHING_ELSE: frozenset[str] = frozenset()
UNJUDGED = frozenset({"fallback", "single"})  # races in flight when the rewards failed, and races of one draw
BACKEND_AWAY = frozenset({"502", "504", "backend_unreachable", "backend_timeout", "deadline_exceeded"})
GATEWAY_AWAY = frozenset({"refused", "cut"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault, and what must hold under it. In any case: no acknowledged record is lost, and all is normal in the end.

    Attributes:
        allowed: Outcomes that clients may see in addition to ``normal`` ones.
        readiness: The gateway's readiness under the fault, which proves that the fault struck and operators learn of
            it; empty: any.
        heals: The time until all is normal counts from the fault's end; otherwise from its beginning.
        least_answered: Share of the requests that must be answered.
        most_slowdown: Bound of the p95 of requests that begin under the fault, as a multiple of the p95 before it.
        slowest_s: Longest time of any request.
        even: Under the fault N must take one value or two neighbouring ones.
        most_draws: Bound of the mean N of the requests under the fault.
        stays_broken: The broken part stays broken, so readiness need not be "ready" in the end.
        archived: The night collects, so acknowledged records are looked for in its archive.
        callers: Requests in flight; 0: the command line decides.
        settings: More settings of the gateway.
        knobs: More knobs of the backends.
    """

    name: str
    must_hold: str
    strike: Callable[[FaultStack], Awaitable[None]]
    normal: frozenset[str] = NORMAL
    allowed: frozenset[str] = NOTHING_ELSE
    readiness: str = "ready"
    heals: bool = True
    least_answered: float = 0.0
    most_slowdown: float = math.inf
    slowest_s: float = DEADLINE_S + 2.0
    even: bool = False
    most_draws: float = math.inf
    stays_broken: bool = False
    callers: int = 0
    replicas: int = 1
    backend: str = "tests.stubs.tgi"
    proxied: str = ""
    faked_clock: bool = False
    faked_commands: bool = False
    archived: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    knobs: Mapping[str, object] = field(default_factory=dict)

    @property
    def possible(self) -> bool:
        """Return whether this machine can run the scenario."""
        return clock_can_be_faked() or not (self.faked_clock or self.faked_commands)


async def gateway_killed(stack: FaultStack) -> None:
    """Kill -9 the gateway under load, and start it again at once, as a supervisor would."""
    await stack.gateway.kill()
    await stack.gateway.begin()
    stack.readiness = await stack.gateway.readiness()


async def gateway_killed_without_redis(stack: FaultStack) -> None:
    """Kill -9 the gateway while some seconds of records wait in the spool, because Redis is frozen."""
    freeze(stack.redis.pid)
    await asyncio.sleep(stack.fault_s)
    await stack.gateway.kill()
    thaw(stack.redis.pid)
    await stack.gateway.begin()
    stack.readiness = await stack.gateway.readiness()


async def gateway_terminated(stack: FaultStack) -> None:
    """Send SIGTERM under load; races in flight must finish."""
    stack.as_planned = await stack.gateway.terminate() in {0, -15}  # uvicorn raises the signal again at its end
    await stack.gateway.begin()
    stack.readiness = await stack.gateway.readiness()


async def redis_killed(stack: FaultStack) -> None:
    """Kill -9 Redis; later it comes back with its append-only file."""
    await stack.redis.kill()
    await stack.hold()
    await stack.redis.begin()


async def redis_wiped(stack: FaultStack) -> None:
    """Kill -9 Redis; later it comes back empty."""
    await stack.records.note_wipe()
    await stack.redis.kill()
    stack.redis.wipe()
    await stack.hold()
    await stack.redis.begin()


async def redis_paused(stack: FaultStack) -> None:
    """Freeze Redis: connections stay open, nothing answers."""
    freeze(stack.redis.pid)
    await asyncio.sleep(stack.pause_s)
    stack.readiness = await stack.gateway.readiness()
    thaw(stack.redis.pid)


async def redis_full(stack: FaultStack) -> None:
    """Let Redis be out of memory without eviction."""
    await stack.redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await stack.redis.command("CONFIG", "SET", "maxmemory", "1")
    await stack.hold()
    await stack.redis.command("CONFIG", "SET", "maxmemory", "0")


async def redis_read_only(stack: FaultStack) -> None:
    """Make Redis a replica, as after a failover."""
    await stack.redis.command("REPLICAOF", "127.0.0.1", "1")
    await stack.hold()
    await stack.redis.command("REPLICAOF", "NO", "ONE")


async def redis_slow(stack: FaultStack) -> None:
    """Delay each call to Redis by 200 ms."""
    stack.proxy.delay_s = 0.2
    await stack.hold()
    stack.proxy.delay_s = 0.0


async def workers_share_a_server(stack: FaultStack) -> None:
    """Break nothing: two workers ask one server for more than it takes."""
    await stack.hold()


async def reward_killed(stack: FaultStack) -> None:
    """Kill the reward server, and start it again."""
    await asyncio.to_thread(stack.reward.stop)
    await stack.hold()
    await asyncio.to_thread(stack.reward.start)


async def reward_hung(stack: FaultStack) -> None:
    """Freeze the reward server: it accepts requests and answers nothing."""
    freeze(stack.reward.pid)
    await stack.hold()
    thaw(stack.reward.pid)


async def disk_full(stack: FaultStack) -> None:
    """Let the spool's file grow by no further byte."""
    stack.limit_files(stack.spool_bytes())
    await stack.hold()
    stack.limit_files(-1)


async def clock_jumps(stack: FaultStack) -> None:
    """Move the wall clock an hour ahead, then an hour behind, then back."""
    for offset_s in (AN_HOUR_S, -AN_HOUR_S):
        stack.set_clock(offset_s)
        await asyncio.sleep(stack.fault_s / 2)
        stack.as_planned &= await stack.clock_shows(offset_s)
    stack.readiness = await stack.gateway.readiness()
    stack.set_clock(0)


SCENARIOS = (
    Scenario(
        "gateway-killed",
        "kill -9 under load: clients lose requests in flight, the journal loses nothing",
        gateway_killed,
        allowed=GATEWAY_AWAY,
        heals=False,
    ),
    Scenario(
        "gateway-killed-redis-frozen",
        "kill -9 with seconds of records waiting for Redis: the next start replays them",
        gateway_killed_without_redis,
        allowed=GATEWAY_AWAY,
        readiness="",  # the new process may or may not have seen Redis answer yet
    ),
    Scenario(
        "sigterm",
        "SIGTERM under load: requests in flight are answered, only new connections are refused",
        gateway_terminated,
        allowed=frozenset({"refused"}),
        heals=False,
    ),
    Scenario("redis-killed", "kill -9 of Redis: no client notices", redis_killed, readiness="degraded"),
    Scenario(
        "redis-wiped",
        "Redis comes back empty: no client notices; only records that Redis had acknowledged are lost with it",
        redis_wiped,
        readiness="degraded",
    ),
    Scenario("redis-paused", "Redis freezes: no client notices", redis_paused, readiness="degraded"),
    Scenario("redis-full", "Redis is out of memory (noeviction): no client notices", redis_full, readiness="degraded"),
    Scenario(
        "redis-read-only", "Redis is a read-only replica: no client notices", redis_read_only, readiness="degraded"
    ),
    Scenario("redis-slow", "every Redis call takes 200 ms more: no client notices", redis_slow, proxied="redis"),
    Scenario(
        "backend-killed",
        "the only backend is gone: 502 at once, readiness says so, and all is normal when it is back",
        fleet_side.backend_killed,
        allowed=BACKEND_AWAY | {"single"},  # a race that had one draw when the backend died answers with it
        readiness="not ready",
    ),
    Scenario(
        "backend-hung",
        "the only backend hangs: 504 at the deadline, never later",
        fleet_side.backend_hung,
        allowed=BACKEND_AWAY,
        readiness="not ready",
    ),
    Scenario("backend-slow", "the backend takes 1.5 s: every answer comes, later", fleet_side.backend_slow),
    Scenario(
        "backend-refuses",
        "the backend refuses draws above 20 while 40 callers ask: all are served, with a smaller N",
        fleet_side.backend_refuses,
        normal=NORMAL | {"single"},
        callers=40,
    ),
    Scenario(
        "workers-share-a-server",
        "64 callers, two workers, N = 4, a backend of 128 permits: nobody is refused, N takes two neighbouring values",
        workers_share_a_server,
        even=True,
        callers=64,
        settings={"GATEWAY_WORKERS": "2"},
        knobs={"max_concurrent_requests": 128, "latency_ms": 1500.0},
    ),
    Scenario(
        "replica-gone",
        "one of three backends is gone: no client notices",
        fleet_side.replica_gone,
        readiness="degraded",
        heals=False,
        stays_broken=True,
        replicas=3,
    ),
    Scenario(
        "replica-hung",
        "one of three backends hangs: its draws are repeated on another one, no client notices",
        fleet_side.replica_hung,
        readiness="degraded",
        replicas=3,
        least_answered=1.0,
        most_slowdown=3.0,
    ),
    *(
        Scenario(
            f"replica-{kind}",
            f"one of three backends answers every draw at once ({kind}): no client notices, its share falls under 2 %",
            fleet_side.replica_fails(kind),
            readiness="" if kind == "429" else "degraded",  # overload is short: the server is seldom ejected for long
            replicas=3,
            least_answered=1.0,
        )
        for kind in fleet_side.SICK
    ),
    Scenario(
        "adapter-lost-vllm",
        "one of two vLLMs restarts without its adapter: the gateway has it loaded again, no client notices",
        fleet_side.adapter_lost_vllm,
        readiness="",  # it is back before readiness looks
        replicas=2,
        backend="tests.stubs.vllm",
        least_answered=1.0,
        settings={
            "GATEWAY_BACKEND__KIND": "vllm",
            "GATEWAY_BACKEND__ADAPTERS_DIR": fleet_side.ADAPTERS_DIR,
            "GATEWAY_POLICY__ADAPTER": fleet_side.ADAPTER,
        },
        knobs={"adapters": (fleet_side.ADAPTER,)},
    ),
    Scenario(
        "adapter-lost-tgi",
        "one of two TGIs restarts without its adapter and serves the base under its name: it is found and passed over",
        fleet_side.adapter_lost_tgi,
        readiness="",
        replicas=2,
        least_answered=1.0,
        settings={"GATEWAY_POLICY__ADAPTER": fleet_side.ADAPTER},
        knobs={"adapters": (fleet_side.ADAPTER,)},
    ),
    Scenario(
        "query-of-death",
        "a request breaks every server that it reaches: three of five never get it, all other requests are served",
        fleet_side.query_of_death,
        readiness="",  # the two that it broke may be back already
        replicas=5,
        least_answered=1.0,
    ),
    Scenario(
        "replica-flaps",
        "one of three backends goes down and up: no client notices",
        fleet_side.replica_flaps,
        readiness="degraded",
        replicas=3,
        proxied="backend",
    ),
    Scenario(
        "connections-cut",
        "connections to one of three backends break in mid-answer: no client notices",
        fleet_side.connections_cut,
        readiness="",  # it depends on when a probe's own connection is cut
        replicas=3,
        proxied="backend",
    ),
    Scenario(
        "reward-killed",
        "no reward server: every request is answered, soon with one draw each",
        reward_killed,
        most_draws=1.2,
        least_answered=1.0,
        allowed=UNJUDGED,
        readiness="degraded",
    ),
    Scenario(
        "reward-hung",
        "the reward server hangs: all are answered, the first late by the reward's timeout, soon with one draw each",
        reward_hung,
        most_draws=1.2,
        least_answered=1.0,
        allowed=UNJUDGED,
        readiness="degraded",
    ),
    Scenario(
        "disk-full",
        "the spool's disk is full: no client notices, and records reach Redis from memory",
        disk_full,
        readiness="degraded",
    ),
    Scenario(
        "clock-jumps",
        "the wall clock jumps an hour ahead and back: no client notices",
        clock_jumps,
        faked_clock=True,
    ),
    Scenario(
        "redis-full-collected",
        "Redis reaches maxmemory: a rollback and collect work on it, all acknowledged records are archived",
        night_side.redis_full_and_collected,
        readiness="degraded",
        archived=True,
    ),
    Scenario(
        "stream-full-unread",
        "the stream is full and nobody reads it: records wait in the spool, then all are archived",
        night_side.stream_full_unread,
        readiness="degraded",
        archived=True,
        settings={"GATEWAY_REDIS__STREAM_MAX_RECORDS": "200"},
    ),
    Scenario(
        "trimmed-under-traffic",
        "the night collects and trims while records come: all are archived",
        night_side.trimmed_under_traffic,
        archived=True,
    ),
    Scenario(
        "collect-clock-wrong",
        "the night's clock is 40 days wrong, with KEEP_DAYS: nothing is expired",
        night_side.collect_clock_wrong,
        archived=True,
        faked_commands=True,
    ),
    Scenario(
        "reward-swapped",
        "reward weights change behind their name between two nights: reported, scored again, no worse adapter passes",
        night_side.reward_swapped,
        archived=True,
        callers=2,
        slowest_s=60.0,  # two nights train and draw on the same cores
        settings={"GATEWAY_RACE__DEADLINE_S": "55", "GATEWAY_REWARD__TIMEOUT_S": "30"},
    ),
)
