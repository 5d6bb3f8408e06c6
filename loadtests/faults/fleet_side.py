"""Faults of single servers in a fleet: one that fails every draw, and a request that ends every server it reaches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from loadtests.faults.world import World, freeze, thaw
from tests.stubs.knobs import Fault

_SETTLED_S = 10.0
_LOOK_S = 5.0
_MOST_SHARE = 0.02
_BACK_WITHIN_S = 60.0
_POLL_S = 0.5
_POISON = "a text that no server survives"
_MOST_BROKEN = 2

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
