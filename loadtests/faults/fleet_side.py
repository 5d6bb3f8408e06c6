"""Faults of backends: one that is away, hangs, fails, loses its adapter, or dies of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from gateway.backend.client import BackendPool
from gateway.policy import PolicyStore
from gateway.settings import BackendSettings, PolicySettings, RedisSettings
from gateway.types import Prompt, Sampling
from gateway.weight_check import CheckedPrompt
from loadtests.faults.world import World, freeze, thaw
from tests.stubs.knobs import Fault

_SETTLED_S = 10.0
_LOOK_S = 5.0
_MOST_SHARE = 0.02
_BACK_WITHIN_S = 60.0
_POLL_S = 0.5
_POISON = "a text that no server survives"
_MOST_BROKEN = 2
_MOST_CHECKS = 6
_POLICY_TAKEN_S = 4.0

ADAPTER = "rft-20261128-0123456789ab"
ADAPTERS_DIR = "{folder}/adapters"
_CHECKED = ("Name three birds.", "What floats on the harbour?", "Count to ten.")

SICK: dict[str, dict[str, object]] = {
    "500": {"fault": Fault.STATUS, "fault_status": 500},
    "424": {"fault": Fault.STATUS, "fault_status": 424},
    "429": {"fault": Fault.STATUS, "fault_status": 429},
    "401": {"fault": Fault.HTML, "fault_status": 401},
    "page": {"fault": Fault.HTML, "fault_status": 200},
}
"""Errors that a server answers at once, each as knobs of the stub."""


def replica_fails(kind: str) -> Callable[[World], Awaitable[None]]:
    """Return the fault in which one of three answers every draw with this error."""

    async def strike(world: World) -> None:
        """One of three answers every draw at once with an error."""
        sick, *others = world.backends
        await sick.set_knobs(**SICK[kind], fault_probability=1.0)
        await asyncio.sleep(_SETTLED_S)
        before = [await _draws(world, index) for index in range(len(world.backends))]
        await asyncio.sleep(_LOOK_S)
        after = [await _draws(world, index) for index in range(len(world.backends))]
        world.told = await world.gateway.readiness()
        here, *elsewhere = [now - then for now, then in zip(after, before, strict=True)]
        world.as_meant = bool(others) and here <= _MOST_SHARE * (here + sum(elsewhere))
        await sick.set_knobs(fault=Fault.NONE, fault_probability=0.0)
        world.as_meant &= await _draws_again(world)

    return strike


async def backend_killed(world: World) -> None:
    """The only backend is gone, and comes back."""
    await asyncio.to_thread(world.backends[0].stop)
    await world.hold()
    await asyncio.to_thread(world.backends[0].start)


async def backend_hung(world: World) -> None:
    """It takes connections and says nothing."""
    freeze(world.backends[0].pid)
    await world.hold()
    thaw(world.backends[0].pid)


async def backend_slow(world: World) -> None:
    """Its answers take a second and a half."""
    await world.backends[0].set_knobs(latency_ms=1500.0)
    await world.hold()
    await world.backends[0].set_knobs(latency_ms=50.0)


async def backend_refuses(world: World) -> None:
    """It takes 20 draws at once, and refuses more; at /info it says otherwise."""
    await world.backends[0].set_knobs(max_concurrent_requests=20)
    await world.hold()
    await world.backends[0].set_knobs(max_concurrent_requests=4096)


async def replica_gone(world: World) -> None:
    """One of three is killed and stays away."""
    await asyncio.to_thread(world.backends[0].stop)
    await world.hold()


async def replica_flaps(world: World) -> None:
    """One of three goes and comes, each for half a second."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + world.fault_s
    while loop.time() < end_s:
        await world.proxy.down()
        await asyncio.sleep(0.5)
        await world.proxy.up()
        await asyncio.sleep(0.5)
    await world.proxy.down()
    world.told = await world.gateway.readiness()
    await world.proxy.up()


async def connections_cut(world: World) -> None:
    """Every connection to one of three backends breaks, again and again, in the middle of whatever it carries."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + world.fault_s
    while loop.time() < end_s:
        world.proxy.cut()
        await asyncio.sleep(0.3)
    world.as_meant = world.proxy.n_cut > 0
    world.told = await world.gateway.readiness()


async def replica_hung(world: World) -> None:
    """One of three takes connections and says nothing."""
    freeze(world.backends[0].pid)
    await world.hold()
    thaw(world.backends[0].pid)


async def query_of_death(world: World) -> None:
    """One request breaks the connections of every server that it reaches, and is sent again and again."""
    for backend in world.backends:
        await backend.set_knobs(fault=Fault.DISCONNECT, fault_text=_POISON)
    body = {"model": "ratchet", "messages": [{"role": "user", "content": _POISON}]}
    statuses = set()
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            async with session.post(world.gateway.url + "/v1/chat/completions", json=body) as response:
                statuses.add(response.status)
            await asyncio.sleep(world.fault_s / 5)
    broken = [state for backend in world.backends if (state := await backend.state())["failed"]]
    world.as_meant = statuses == {503} and len(broken) <= _MOST_BROKEN
    world.told = await world.gateway.readiness()
    for backend in world.backends:
        await backend.set_knobs(fault=Fault.NONE, fault_text="")


async def adapter_lost_vllm(world: World) -> None:
    """One of two restarts with the base alone; the gateway has it load the adapter again."""
    await asyncio.to_thread((world.folder / "adapters" / ADAPTER).mkdir, parents=True)
    await asyncio.to_thread(world.backends[0].restart, adapters=())
    world.as_meant = await _draws_again(world)
    await world.hold()


async def adapter_lost_tgi(world: World) -> None:
    """One of two restarts with the base alone, serves it under the adapter's name, and gets the adapter back later."""
    await _publish_check(world)
    await asyncio.to_thread(world.backends[0].restart, adapters=())
    await world.hold()
    before = await _draws(world, 0)
    await asyncio.sleep(_LOOK_S)
    world.as_meant = await _draws(world, 0) - before <= _MOST_CHECKS
    await asyncio.to_thread(world.backends[0].restart)
    world.as_meant &= await _draws_again(world)


async def _publish_check(world: World) -> None:
    """Publish what the adapter answers with the policy, as a promotion does, and wait until the gateway has it."""
    settings = BackendSettings(kind="tgi", urls=(world.backends[0].url,))
    async with BackendPool(settings) as pool:
        check = [await _checked(pool, prompt) for prompt in _CHECKED]
    redis = RedisSettings(url=world.redis.url)
    store = PolicyStore(PolicySettings(adapter=ADAPTER), redis, folder=world.folder / "publisher", n_limit=16)
    await store.start()
    try:
        await store.publish(store.current.successor(reason="a check", checks={ADAPTER: tuple(check)}))
    finally:
        await store.aclose()
    await asyncio.sleep(_POLICY_TAKEN_S)


async def _checked(pool: BackendPool, prompt: str) -> CheckedPrompt:
    """Return what the adapter answers to a prompt, and what the base does."""
    likely = []
    sampling = Sampling(temperature=0.0, max_tokens=8, logprobs=True, top_logprobs=5)
    for name in (ADAPTER, None):
        answer = await pool.complete(Prompt([{"role": "user", "content": prompt}], sampling, name), seed=1, replica=0)
        entries = (answer.logprobs or {})["content"]
        likely.append([{one["token"]: one["logprob"] for one in [*entry["top_logprobs"], entry]} for entry in entries])
        if name is not None:
            tokens = tuple(entry["token"] for entry in entries)
    shared = min(len(tokens), *(len(places) for places in likely))
    own, base = (tuple(places[:shared]) for places in likely)
    return CheckedPrompt(prompt=prompt, tokens=tokens[:shared], adapter=own, base=base)


async def _draws(world: World, index: int) -> int:
    """Return how many draws reached a server, those that failed included."""
    state = await world.backends[index].state()
    return int(state["started"]) + int(state["failed"])


async def _draws_again(world: World) -> bool:
    """Return whether the first server answers again within a minute."""
    before = int((await world.backends[0].state())["finished"])
    for _ in range(int(_BACK_WITHIN_S / _POLL_S)):
        await asyncio.sleep(_POLL_S)
        if int((await world.backends[0].state())["finished"]) > before + 1:  # more than a probe
            return True
    return False
