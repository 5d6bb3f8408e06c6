"""Faults between the gateway and the night: a full Redis, trimming under traffic, a wrong clock, other reward weights.

Acknowledged records must be in the night's archive at the end.
"""

from __future__ import annotations

import asyncio
import re

from loadtests.faults.fault_stack import FaultStack

_DAYS_WRONG = 40


async def redis_full_and_collected(stack: FaultStack) -> None:
    """Fill Redis to its ``maxmemory`` under load; roll back a canary and ``collect`` while it is full."""
    canary = await stack.run("gateway", "policy", "set", "--canary-share", "0.2", "--reason", "try")
    await stack.redis.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await stack.redis.command("CONFIG", "SET", "maxmemory", str(await stack.redis.used_bytes()))
    await stack.hold()
    rolled_back = await stack.run("distill", "rollback", "--reason", "bad")
    before = await stack.redis.length()
    collected = await stack.run("distill", "collect")
    stack.as_planned = not any(ended.code for ended in (canary, rolled_back, collected))
    stack.as_planned &= _counted("completions archived", collected.output) >= before
    await stack.redis.command("CONFIG", "SET", "maxmemory", "0")


async def stream_full_unread(stack: FaultStack) -> None:
    """Let the stream reach its limit unread; then collect it, and what the spool held."""
    await stack.hold()
    collected = await stack.run("distill", "collect")
    stack.as_planned = collected.code == 0 and _counted("completions archived", collected.output) > 0


async def trimmed_under_traffic(stack: FaultStack) -> None:
    """Collect, acknowledge and trim without a pause while records come."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + stack.fault_s
    archived = 0
    while loop.time() < end_s:
        collected = await stack.run("distill", "collect")
        archived += _counted("completions archived", collected.output)
        stack.as_planned &= collected.code == 0
    stack.as_planned &= archived > 0
    stack.readiness = await stack.gateway.readiness()


async def collect_clock_wrong(stack: FaultStack) -> None:
    """Run ``collect`` with a clock 40 days ahead, then 40 days behind, with KEEP_DAYS = 30."""
    await stack.hold()
    for days in (_DAYS_WRONG, -_DAYS_WRONG):
        collected = await stack.run("distill", "collect", clock_days=days)
        warned = f"{_DAYS_WRONG} days apart" in collected.output
        stack.as_planned &= collected.code == 0 and warned and _counted("deleted as too old", collected.output) == 0


async def reward_swapped(stack: FaultStack) -> None:
    """Change the reward model's weights behind its name between two nights; each night's adapter is worse.

    Comparing old rewards of the serving policy with new ones of the adapter would let the second adapter pass.
    """
    await stack.hold()
    nights = [await stack.night()]
    await stack.reward.set_knobs(shift=10.0)
    nights.append(await stack.night())
    scored, decided = ([run.result(step) or {} for run in nights] for step in ("score", "gate"))
    reported = [bool(result.get("news")) for result in scored]
    promoted = [result.get("promote") for result in decided]
    stack.as_planned = (reported, promoted) == ([False, True], [False, False])


def _counted(what: str, output: str) -> int:
    """Return a number of the table that ``collect`` prints; -1 if it printed none."""
    found = re.search(rf"{what}\D*([\d,]+)", output)
    return int(found[1].replace(",", "")) if found else -1
