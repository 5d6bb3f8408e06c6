"""``python -m distill rollback``: take a promotion back by hand."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from distill.exits import exit_on_error
from distill.promotion.policies import roll_back
from gateway import settings as gateway_settings
from gateway.policy import Policy, PolicyStore
from gateway.telemetry import configure_logging

console = Console()


def rollback(
    reason: Annotated[str, typer.Option(help="Why; kept in the policy's history.")] = "by hand",
) -> None:
    """Take back the canary, or the newest promotion: adapter, N and URLs as they were before it.

    Exit codes: 0 done, 75 try again later, 1 there is nothing to roll back.
    """
    with exit_on_error():
        gateway = gateway_settings.load()
        configure_logging("error", "console")
        policy = asyncio.run(_roll_back(gateway, reason))
        console.print(f"rolled back: {policy_line(policy)}", highlight=False, soft_wrap=True, markup=False)


async def _roll_back(gateway: gateway_settings.Settings, reason: str) -> Policy:
    async with PolicyStore.opened(gateway) as store:
        return await roll_back(store, reason=reason)


def policy_line(policy: Policy) -> str:
    second = "" if policy.second is None else f", beside it {policy.second.name} {policy.second.adapter or '(base)'}"
    return f"policy {policy.version} in force: {policy.adapter or '(base)'} with N = {policy.n}{second}"
