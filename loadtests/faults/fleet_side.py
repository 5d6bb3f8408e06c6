"""Faults of backends: one that is away, hangs, fails, loses its adapter, or is broken by a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from gateway.backend.pool import BackendPool
from gateway.policy import PolicyStore
from gateway.settings import BackendSettings, PolicySettings, RedisSettings
from gateway.types import Prompt, Sampling
from gateway.weight_check import CheckedPrompt
from loadtests.faults.fault_stack import FaultStack
from loadtests.processes import freeze, thaw
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


def replica_fails(kind: str) -> Callable[[FaultStack], Awaitable[None]]:
    """Return the fault in which one of three servers answers every draw with this error."""

    async def strike(stack: FaultStack) -> None:
        """Make one of three answer every draw at once with an error."""
        sick, *others = stack.backends
        await sick.set_knobs(**SICK[kind], fault_probability=1.0)
        await asyncio.sleep(_SETTLED_S)
        before = [await _draws(stack, index) for index in range(len(stack.backends))]
        await asyncio.sleep(_LOOK_S)
        after = [await _draws(stack, index) for index in range(len(stack.backends))]
        stack.readiness = await stack.gateway.readiness()
        here, *elsewhere = [now - then for now, then in zip(after, before, strict=True)]
        stack.as_planned = bool(others) and here <= _MOST_SHARE * (here + sum(elsewhere))
        await sick.set_knobs(fault=Fault.NONE, fault_probability=0.0)
        stack.as_planned &= await _draws_again(stack)

    return strike


async def backend_killed(stack: FaultStack) -> None:
    """Kill the only backend, and start it again."""
    await asyncio.to_thread(stack.backends[0].stop)
    await stack.hold()
    await asyncio.to_thread(stack.backends[0].start)


async def backend_hung(stack: FaultStack) -> None:
    """Freeze the only backend: it accepts connections and answers nothing."""
    freeze(stack.backends[0].pid)
    await stack.hold()
    thaw(stack.backends[0].pid)


async def backend_slow(stack: FaultStack) -> None:
    """Let the backend's answers take 1.5 s."""
    await stack.backends[0].set_knobs(latency_ms=1500.0)
    await stack.hold()
    await stack.backends[0].set_knobs(latency_ms=50.0)


async def backend_refuses(stack: FaultStack) -> None:
    """Let the backend accept 20 draws at once, and refuse more, although /info says otherwise."""
    await stack.backends[0].set_knobs(max_concurrent_requests=20)
    await stack.hold()
    await stack.backends[0].set_knobs(max_concurrent_requests=4096)


async def replica_gone(stack: FaultStack) -> None:
    """Kill one of three; it stays away."""
    await asyncio.to_thread(stack.backends[0].stop)
    await stack.hold()


async def replica_flaps(stack: FaultStack) -> None:
    """Take one of three down and up again, half a second each."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + stack.fault_s
    while loop.time() < end_s:
        await stack.proxy.down()
        await asyncio.sleep(0.5)
        await stack.proxy.up()
        await asyncio.sleep(0.5)
    await stack.proxy.down()
    stack.readiness = await stack.gateway.readiness()
    await stack.proxy.up()


async def connections_cut(stack: FaultStack) -> None:
    """Break every connection to one of three backends, again and again, in the middle of its traffic."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + stack.fault_s
    while loop.time() < end_s:
        stack.proxy.cut()
        await asyncio.sleep(0.3)
    stack.as_planned = stack.proxy.n_cut > 0
    stack.readiness = await stack.gateway.readiness()


async def replica_hung(stack: FaultStack) -> None:
    """Freeze one of three: it accepts connections and answers nothing."""
    freeze(stack.backends[0].pid)
    await stack.hold()
    thaw(stack.backends[0].pid)


async def query_of_death(stack: FaultStack) -> None:
    """Send one request again and again that breaks the connections of every server that it reaches."""
    for backend in stack.backends:
        await backend.set_knobs(fault=Fault.DISCONNECT, fault_text=_POISON)
    body = {"model": "ratchet", "messages": [{"role": "user", "content": _POISON}]}
    statuses = set()
    async with aiohttp.ClientSession() as session:
        for _ in range(5):
            async with session.post(stack.gateway.url + "/v1/chat/completions", json=body) as response:
                statuses.add(response.status)
            await asyncio.sleep(stack.fault_s / 5)
    broken = [state for backend in stack.backends if (state := await backend.state())["failed"]]
    stack.as_planned = statuses == {503} and len(broken) <= _MOST_BROKEN
    stack.readiness = await stack.gateway.readiness()
    for backend in stack.backends:
        await backend.set_knobs(fault=Fault.NONE, fault_text="")


async def adapter_lost_vllm(stack: FaultStack) -> None:
    """Restart one of two with the base alone; the gateway must have it load the adapter again."""
    await asyncio.to_thread((stack.folder / "adapters" / ADAPTER).mkdir, parents=True)
    await asyncio.to_thread(stack.backends[0].restart, adapters=())
    stack.as_planned = await _draws_again(stack)
    await stack.hold()


async def adapter_lost_tgi(stack: FaultStack) -> None:
    """Restart one of two so that it serves the base under the adapter's name, and give the adapter back later."""
    await _publish_check(stack)
    await asyncio.to_thread(stack.backends[0].restart, adapters=())
    await stack.hold()
    before = await _draws(stack, 0)
    await asyncio.sleep(_LOOK_S)
    stack.as_planned = await _draws(stack, 0) - before <= _MOST_CHECKS
    await asyncio.to_thread(stack.backends[0].restart)
    stack.as_planned &= await _draws_again(stack)


async def _publish_check(stack: FaultStack) -> None:
    """Publish a weight check with the policy, as a promotion does, and wait until the gateway has it."""
    settings = BackendSettings(kind="tgi", urls=(stack.backends[0].url,))
    async with BackendPool(settings) as pool:
        check = [await _checked(pool, prompt) for prompt in _CHECKED]
    redis = RedisSettings(url=stack.redis.url)
    store = PolicyStore(PolicySettings(adapter=ADAPTER), redis, folder=stack.folder / "publisher", n_limit=16)
    await store.start()
    try:
        await store.publish(store.current.successor(reason="a check", checks={ADAPTER: tuple(check)}))
    finally:
        await store.aclose()
    await asyncio.sleep(_POLICY_TAKEN_S)


async def _checked(pool: BackendPool, prompt: str) -> CheckedPrompt:
    """Return the adapter's answer to a prompt, and the base's likelihoods."""
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


async def _draws(stack: FaultStack, index: int) -> int:
    """Return the number of draws that reached a server, failed ones included."""
    state = await stack.backends[index].state()
    return int(state["started"]) + int(state["failed"])


async def _draws_again(stack: FaultStack) -> bool:
    """Return whether the first server answers again within a minute."""
    before = int((await stack.backends[0].state())["finished"])
    for _ in range(int(_BACK_WITHIN_S / _POLL_S)):
        await asyncio.sleep(_POLL_S)
        if int((await stack.backends[0].state())["finished"]) > before + 1:  # more than a probe
            return True
    return False
