"""Faults between the gateway and the night: a full Redis, trimming under traffic, a wrong clock, other reward weights.

The other side of the account is the archive here: what clients were answered must be in it in the end.
"""

from __future__ import annotations

import asyncio
import re

from loadtests.faults.world import World

_DAYS_WRONG = 40


async def redis_full_and_collected(world: World) -> None:
    """Redis reaches its ``maxmemory`` under load; a canary is rolled back and ``collect`` frees it, both while full."""
    canary = await world.run("gateway", "policy", "set", "--canary-share", "0.2", "--reason", "try")
    await world.redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await world.redis.command("CONFIG", "SET", "maxmemory", str(await world.redis.used_bytes()))
    await world.hold()
    rolled_back = await world.run("distill", "rollback", "--reason", "bad")
    before = await world.redis.length()
    collected = await world.run("distill", "collect")
    world.as_meant = not any(ended.code for ended in (canary, rolled_back, collected))
    world.as_meant &= _counted("completions archived", collected.output) >= before
    await world.redis.command("CONFIG", "SET", "maxmemory", "0")


async def stream_full_unread(world: World) -> None:
    """The stream reaches its limit and nobody reads it; then the night collects it, and what the spool held."""
    await world.hold()
    collected = await world.run("distill", "collect")
    world.as_meant = collected.code == 0 and _counted("completions archived", collected.output) > 0


async def trimmed_under_traffic(world: World) -> None:
    """The night collects, acknowledges and trims without a pause while records come."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + world.fault_s
    archived = 0
    while loop.time() < end_s:
        collected = await world.run("distill", "collect")
        archived += _counted("completions archived", collected.output)
        world.as_meant &= collected.code == 0
    world.as_meant &= archived > 0
    world.told = await world.gateway.readiness()


async def collect_clock_wrong(world: World) -> None:
    """``collect`` runs on a machine whose clock is 40 days ahead, then 40 days late, and may keep records for 30."""
    await world.hold()
    for days in (_DAYS_WRONG, -_DAYS_WRONG):
        collected = await world.run("distill", "collect", clock_days=days)
        told = f"{_DAYS_WRONG} days apart" in collected.output
        world.as_meant &= collected.code == 0 and told and _counted("too old to keep", collected.output) == 0


async def reward_swapped(world: World) -> None:
    """Between two nights other weights come to stand behind the reward model's name; each night's adapter is worse.

    Old rewards of the serving policy, compared with new ones of the adapter, would let the second one through.
    """
    await world.hold()
    nights = [await world.night()]
    await world.reward.set_knobs(shift=10.0)
    nights.append(await world.night())
    scored, decided = ([run.result(step) or {} for run in nights] for step in ("score", "gate"))
    told = [bool(result.get("news")) for result in scored]
    promoted = [result.get("promote") for result in decided]
    world.as_meant = (told, promoted) == ([False, True], [False, False])


def _counted(what: str, output: str) -> int:
    """A number of the table that ``collect`` prints; -1 where it printed none."""
    found = re.search(rf"{what}\D*([\d,]+)", output)
    return int(found[1].replace(",", "")) if found else -1
