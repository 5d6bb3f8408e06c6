"""``python -m distill watch``: the guard over a trial."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.console import Console

from distill import settings
from distill.cli.rollback import policy_line
from distill.exits import ROLLED_BACK, exit_on_error
from distill.promotion.reward_identity import RewardIdentity
from distill.promotion.watch import Look, Watch
from gateway import settings as gateway_settings
from gateway.journal.stream import StreamTail
from gateway.policy import PolicyStore
from gateway.telemetry import configure_logging

console = Console()


def watch(
    once: Annotated[bool, typer.Option("--once", help="Judge all records so far once, then end.")] = False,
) -> None:
    """Guard the running trial: promote its canary or roll it back, as soon as live traffic gives enough evidence.

    Runs until SIGTERM. Exit codes: 0 nothing needs attention, 75 try again later, 2 bad settings or a damaged file,
    3 another guard runs, 4 (with --once) the new policy was rolled back.
    """
    with exit_on_error():
        promotion = settings.load().promotion
        gateway = gateway_settings.load()
        configure_logging("warning", "console")
        if not once:
            asyncio.run(_watch_forever(gateway, promotion))
            return
        look = asyncio.run(_watch_once(gateway, promotion))
        console.print(_look_line(look), highlight=False, soft_wrap=True, markup=False)
        if look.rolled_back:
            raise typer.Exit(ROLLED_BACK)


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


def _look_line(look: Look) -> str:
    if look.phase is None or look.verdict is None:
        return f"no trial under way; {policy_line(look.policy)}"
    stage = "after its promotion" if look.phase.promoted else "as canary"
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(look.excluded.items())) or "none"
    return (
        f"trial {look.phase.trial}, {stage}: {look.verdict.describe()}: {look.verdict.decision}; "
        f"records left out: {left_out}; {policy_line(look.policy)}"
    )
