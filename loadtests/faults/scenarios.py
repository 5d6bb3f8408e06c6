"""The faults, one function each: it strikes while clients ask, lasts a while, and heals."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from loadtests.faults import fleet_side, night_side
from loadtests.faults.callers import NORMAL
from loadtests.faults.world import DEADLINE_S, World, clock_can_be_faked, freeze, thaw

AN_HOUR_S = 3600

# What clients may see, beside scored answers.
NOTHING_ELSE: frozenset[str] = frozenset()
UNJUDGED = frozenset({"fallback", "single"})  # races that were under way as the rewards went, and those of one draw
BACKEND_AWAY = frozenset({"502", "504", "backend_unreachable", "backend_timeout", "deadline_exceeded"})
GATEWAY_AWAY = frozenset({"refused", "cut"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault and what must hold under it, beside this: nothing acknowledged is lost, and all is well in the end.

    ``allowed`` are the outcomes that clients may see beside those that are ``normal``. ``told`` is what the gateway's
    readiness must say under the fault: it proves that the fault struck, and that operators learn of it. ``heals``: the
    time until all is well counts from the fault's end; otherwise from its beginning. ``least_answered``: share of the
    requests that must be answered. ``most_slowdown``: the p95 of the requests that begin under the fault, as a multiple
    of the p95 before it. ``slowest_s``: no request may take longer. ``even``: under the fault N takes two
    neighbouring values. ``most_draws``: mean N of the requests under it. ``scarred``: what
    broke stays broken, so readiness need not say "ready" in the end. ``archived``: the night collects, so what was
    acknowledged is looked for in its archive. ``callers``: requests in flight, where it is not for the command line
    to say. ``settings`` are the gateway's, ``knobs`` the backends'.
    """

    name: str
    must_hold: str
    strike: Callable[[World], Awaitable[None]]
    normal: frozenset[str] = NORMAL
    allowed: frozenset[str] = NOTHING_ELSE
    told: str = "ready"
    heals: bool = True
    least_answered: float = 0.0
    most_slowdown: float = math.inf
    slowest_s: float = DEADLINE_S + 2.0
    even: bool = False
    most_draws: float = math.inf
    scarred: bool = False
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
        """Whether this machine has what it takes."""
        return clock_can_be_faked() or not (self.faked_clock or self.faked_commands)


async def gateway_killed(world: World) -> None:
    """Kill -9 in mid-load, and start again at once, as a supervisor would."""
    await world.gateway.kill()
    await world.gateway.begin()
    world.told = await world.gateway.readiness()


async def gateway_killed_without_redis(world: World) -> None:
    """The same with records of some seconds in the spool: Redis is frozen."""
    freeze(world.redis.pid)
    await asyncio.sleep(world.fault_s)
    await world.gateway.kill()
    thaw(world.redis.pid)
    await world.gateway.begin()
    world.told = await world.gateway.readiness()


async def gateway_terminated(world: World) -> None:
    """SIGTERM under load; what it had begun it must end."""
    world.as_meant = await world.gateway.terminate() in {0, -15}  # uvicorn raises the signal again, once all is done
    await world.gateway.begin()
    world.told = await world.gateway.readiness()


async def redis_killed(world: World) -> None:
    """Kill -9; later it comes back with its append-only file."""
    await world.redis.kill()
    await world.hold()
    await world.redis.begin()


async def redis_wiped(world: World) -> None:
    """Kill -9; later it comes back empty."""
    await world.arrivals.last_look()
    await world.redis.kill()
    world.redis.wipe()
    await world.hold()
    await world.redis.begin()


async def redis_paused(world: World) -> None:
    """Frozen: connections stand, nothing answers."""
    freeze(world.redis.pid)
    await asyncio.sleep(world.pause_s)
    world.told = await world.gateway.readiness()
    thaw(world.redis.pid)


async def redis_full(world: World) -> None:
    """Out of memory, and nothing may be evicted."""
    await world.redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await world.redis.command("CONFIG", "SET", "maxmemory", "1")
    await world.hold()
    await world.redis.command("CONFIG", "SET", "maxmemory", "0")


async def redis_read_only(world: World) -> None:
    """It takes itself for a replica, as after a failover."""
    await world.redis.command("REPLICAOF", "127.0.0.1", "1")
    await world.hold()
    await world.redis.command("REPLICAOF", "NO", "ONE")


async def redis_slow(world: World) -> None:
    """Each call takes 200 ms longer."""
    world.proxy.delay_s = 0.2
    await world.hold()
    world.proxy.delay_s = 0.0


async def workers_share_a_server(world: World) -> None:
    """Nothing breaks: two workers ask one server for more than it takes."""
    await world.hold()


async def reward_killed(world: World) -> None:
    """The reward server is gone, and comes back."""
    await asyncio.to_thread(world.reward.stop)
    await world.hold()
    await asyncio.to_thread(world.reward.start)


async def reward_hung(world: World) -> None:
    """The reward server takes requests and says nothing."""
    freeze(world.reward.pid)
    await world.hold()
    thaw(world.reward.pid)


async def disk_full(world: World) -> None:
    """The spool's file may not grow by another byte."""
    world.limit_files(world.spool_bytes())
    await world.hold()
    world.limit_files(-1)


async def clock_jumps(world: World) -> None:
    """The wall clock jumps an hour ahead, then an hour back, then is right."""
    for offset_s in (AN_HOUR_S, -AN_HOUR_S):
        world.set_clock(offset_s)
        await asyncio.sleep(world.fault_s / 2)
        world.as_meant &= await world.clock_shows(offset_s)
    world.told = await world.gateway.readiness()
    world.set_clock(0)


SCENARIOS = (
    Scenario(
        "gateway-killed",
        "kill -9 under load: clients lose what was under way, the journal nothing",
        gateway_killed,
        allowed=GATEWAY_AWAY,
        heals=False,
    ),
    Scenario(
        "gateway-killed-redis-frozen",
        "kill -9 with seconds of records waiting for Redis: the next start replays them",
        gateway_killed_without_redis,
        allowed=GATEWAY_AWAY,
        told="",  # the new process may or may not have seen Redis answer yet
    ),
    Scenario(
        "sigterm",
        "SIGTERM under load: what has begun ends with its answer, only new connections are refused",
        gateway_terminated,
        allowed=frozenset({"refused"}),
        heals=False,
    ),
    Scenario("redis-killed", "kill -9 of Redis: no client notices", redis_killed, told="degraded"),
    Scenario(
        "redis-wiped",
        "Redis comes back empty: no client notices; only what Redis itself had acknowledged dies with it",
        redis_wiped,
        told="degraded",
    ),
    Scenario("redis-paused", "Redis freezes: no client notices", redis_paused, told="degraded"),
    Scenario("redis-full", "Redis is out of memory (noeviction): no client notices", redis_full, told="degraded"),
    Scenario("redis-read-only", "Redis is a read-only replica: no client notices", redis_read_only, told="degraded"),
    Scenario("redis-slow", "every Redis call takes 200 ms more: no client notices", redis_slow, proxied="redis"),
    Scenario(
        "backend-killed",
        "the only backend is gone: 502 at once, readiness says so, and all is well when it is back",
        fleet_side.backend_killed,
        allowed=BACKEND_AWAY | {"single"},  # a race that had one draw when the backend went answers with that one
        told="not ready",
    ),
    Scenario(
        "backend-hung",
        "the only backend hangs: 504 at the deadline, never later",
        fleet_side.backend_hung,
        allowed=BACKEND_AWAY,
        told="not ready",
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
        told="degraded",
        heals=False,
        scarred=True,
        replicas=3,
    ),
    Scenario(
        "replica-hung",
        "one of three backends hangs: its draws begin again on another one, no client notices",
        fleet_side.replica_hung,
        told="degraded",
        replicas=3,
        least_answered=1.0,
        most_slowdown=3.0,
    ),
    *(
        Scenario(
            f"replica-{kind}",
            f"one of three backends answers every draw at once ({kind}): no client notices, its share falls under 2 %",
            fleet_side.replica_fails(kind),
            told="" if kind == "429" else "degraded",  # overload passes: it is seldom ejected for long
            replicas=3,
            least_answered=1.0,
        )
        for kind in fleet_side.SICK
    ),
    Scenario(
        "adapter-lost-vllm",
        "one of two vLLMs restarts without its adapter: it gets it loaded again, no client notices",
        fleet_side.adapter_lost_vllm,
        told="",  # it is back before readiness looks
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
        told="",
        replicas=2,
        least_answered=1.0,
        settings={"GATEWAY_POLICY__ADAPTER": fleet_side.ADAPTER},
        knobs={"adapters": (fleet_side.ADAPTER,)},
    ),
    Scenario(
        "query-of-death",
        "a request ends every server that it reaches: three of five never see it, others are served all the while",
        fleet_side.query_of_death,
        told="",  # the two that it broke may be back already
        replicas=5,
        least_answered=1.0,
    ),
    Scenario(
        "replica-flaps",
        "one of three backends goes and comes: no client notices",
        fleet_side.replica_flaps,
        told="degraded",
        replicas=3,
        proxied="backend",
    ),
    Scenario(
        "connections-cut",
        "connections to one of three backends break in mid-answer: no client notices",
        fleet_side.connections_cut,
        told="",  # it depends on when a probe's own connection is cut
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
        told="degraded",
    ),
    Scenario(
        "reward-hung",
        "the reward server hangs: all are answered, the first late by the reward's timeout, soon with one draw each",
        reward_hung,
        most_draws=1.2,
        least_answered=1.0,
        allowed=UNJUDGED,
        told="degraded",
    ),
    Scenario(
        "disk-full",
        "the spool's disk takes nothing: no client notices, and records reach Redis from memory",
        disk_full,
        told="degraded",
    ),
    Scenario(
        "clock-jumps",
        "the wall clock jumps an hour ahead and back: no client notices",
        clock_jumps,
        faked_clock=True,
    ),
    Scenario(
        "redis-full-collected",
        "Redis reaches maxmemory: a rollback and collect work on it, what was acknowledged is archived",
        night_side.redis_full_and_collected,
        told="degraded",
        archived=True,
    ),
    Scenario(
        "stream-full-unread",
        "the stream is full and nobody reads it: records wait in the spool, then all are archived",
        night_side.stream_full_unread,
        told="degraded",
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
        "the reward weights change behind their name between two nights: told, scored anew, no worse adapter promoted",
        night_side.reward_swapped,
        archived=True,
        callers=2,
        slowest_s=60.0,  # two nights train and draw on the same cores
        settings={"GATEWAY_RACE__DEADLINE_S": "55", "GATEWAY_REWARD__TIMEOUT_S": "30"},
    ),
)
