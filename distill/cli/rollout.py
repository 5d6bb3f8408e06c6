"""``python -m distill watch`` and ``python -m distill rollback``: the guard over a promotion, and the way back by hand.

Exit codes are those of every command (``distill.exits``).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.console import Console

from distill import settings
from distill.exits import ROLLED_BACK, errors_in_words
from distill.promotion.policies import roll_back
from distill.promotion.reward_identity import RewardIdentity
from distill.promotion.watch import Look, Watch
from gateway import settings as gateway_settings
from gateway.journal.stream import StreamTail
from gateway.policy import Policy, PolicyStore
from gateway.telemetry import configure_logging

console = Console()


def watch(
    once: Annotated[bool, typer.Option("--once", help="Look once at all there is, act on it, and end.")] = False,
) -> None:
    """Guard the trial under way: promote its canary, or roll it back, when the evidence of live traffic is there.

    Runs until SIGTERM. Exit codes: 0 nothing needs attention, 75 try again later, 2 bad settings or a damaged file,
    3 another guard is at work, 4 (with --once) the new policy was rolled back.
    """
    with errors_in_words():
        promotion = settings.load().promotion
        gateway = gateway_settings.load()
        configure_logging("warning", "console")
        if not once:
            asyncio.run(_watch_forever(gateway, promotion))
            return
        look = asyncio.run(_watch_once(gateway, promotion))
        console.print(_said(look), highlight=False, soft_wrap=True, markup=False)
        if look.rolled_back:
            raise typer.Exit(ROLLED_BACK)


def rollback(
    reason: Annotated[str, typer.Option(help="Why; kept in the policy's history.")] = "by hand",
) -> None:
    """Take back the canary, or the newest promotion: adapter, N and URLs as they were before it.

    Exit codes: 0 done, 75 try again later, 1 there is nothing to roll back.
    """
    with errors_in_words():
        gateway = gateway_settings.load()
        configure_logging("error", "console")
        policy = asyncio.run(_roll_back(gateway, reason))
        console.print(f"rolled back: {_policy(policy)}", highlight=False, soft_wrap=True, markup=False)


async def _roll_back(gateway: gateway_settings.Settings, reason: str) -> Policy:
    async with PolicyStore.opened(gateway) as store:
        return await roll_back(store, reason=reason)


async def _watch_once(gateway: gateway_settings.Settings, promotion: settings.PromotionSettings) -> Look:
    async with _watch(gateway, promotion) as guard:
        return await guard.once()


async def _watch_forever(gateway: gateway_settings.Settings, promotion: settings.PromotionSettings) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with _watch(gateway, promotion) as guard:
        await guard.forever(stop)


@contextlib.asynccontextmanager
async def _watch(gateway: gateway_settings.Settings, promotion: settings.PromotionSettings) -> AsyncIterator[Watch]:
    async with (
        PolicyStore.opened(gateway) as store,
        contextlib.aclosing(StreamTail(gateway.redis)) as tail,
        contextlib.aclosing(RewardIdentity(gateway.reward)) as reward,
    ):
        yield Watch(store, tail, promotion, reward)


def _said(look: Look) -> str:
    if look.phase is None or look.verdict is None:
        return f"no trial under way; {_policy(look.policy)}"
    stage = "after its promotion" if look.phase.promoted else "as canary"
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(look.excluded.items())) or "none"
    return (
        f"trial {look.phase.trial}, {stage}: {look.verdict.words()}: {look.verdict.decision}; "
        f"records left out: {left_out}; {_policy(look.policy)}"
    )


def _policy(policy: Policy) -> str:
    beside = "" if policy.second is None else f", beside it {policy.second.name} {policy.second.adapter or '(base)'}"
    return f"policy {policy.version} in force: {policy.adapter or '(base)'} with N = {policy.n}{beside}"
