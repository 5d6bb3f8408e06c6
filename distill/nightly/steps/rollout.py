"""The last half of a night that the gate let through: an immutable adapter, loaded, seen to answer, given some traffic.

The guard (``python -m distill watch``) takes it from there: to all traffic, or back.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from distill.errors import NightError
from distill.nightly.candidates import publish_checkpoint
from distill.nightly.context import Night, Result
from distill.nightly.manifest import serving_policy
from distill.nightly.steps import measure as measuring
from distill.promotion.adapter import Adapter
from distill.promotion.canary import check_canary, standing_check
from distill.promotion.load import load as load_adapter
from distill.promotion.policies import start_canary
from gateway.errors import PolicyError
from gateway.policy import Arm, Policy, PolicyStore


def publish(night: Night) -> Result:
    """Make the chosen checkpoint an adapter, for ever, and keep what it drew: the next night measures against it."""
    decided = night.results["gate"]
    checkpoint = next(
        path for path in map(Path, night.results["train"]["checkpoints"]) if path.name == decided["checkpoint"]
    )
    folder = night.settings.promotion.adapters_dir
    adapter = publish_checkpoint(night, checkpoint, folder, n_allowed=decided["n_new"])
    # The draws that chose it flatter it a little, so the next one has it a little harder: the safe side.
    measuring.keep_draws(night, checkpoint.name)
    night.say(f"published as {adapter.name}")
    return {"adapter": adapter.name, "path": str(adapter.folder)}


def load(night: Night) -> Result:
    """Have every replica of the fleet serve the adapter."""
    asyncio.run(load_adapter(_adapter(night), night.gateway.backend, night.settings.promotion))
    return {"urls": len(night.gateway.backend.urls)}


def canary(night: Night) -> Result:
    """See by its behaviour that the adapter answers under its name, at every replica."""
    seen = asyncio.run(check_canary(_adapter(night), night.gateway.backend))
    found = "; ".join(str(replica) for replica in seen)
    night.say(found)
    return {"found": found}


def promote(night: Night) -> Result:
    """Give the adapter at its N a share of traffic; the guard watches it."""
    decided, settings = night.results["gate"], night.settings.promotion
    _check_unchanged(night)
    arm = Arm(
        name="canary",
        adapter=night.results["publish"]["adapter"],
        n=decided["n_new"],
        default_temperature=decided["temperature"],
    )
    policy = asyncio.run(_start(night, arm, share=settings.canary_share, reason=decided["why"]))
    share = policy.canary.share if policy.canary is not None and policy.canary.adapter == arm.adapter else None
    night.say(
        f"policy {policy.version}: {arm.adapter} with N = {arm.n} answers {share:.0%} of conversations; "
        "the guard (python -m distill watch) gives it all of them, or takes it back"
        if share is not None
        else f"policy {policy.version}: this trial is over already"
    )
    return {"policy_version": policy.version, "share": share}


def _adapter(night: Night) -> Adapter:
    return Adapter.open(Path(night.results["publish"]["path"]))


def _check_unchanged(night: Night) -> None:
    """What was measured against must still serve: else the evidence is about something else.

    Raises:
        NightError: Another policy serves now.
    """
    now, then = asyncio.run(serving_policy(night.gateway)), night.serving
    if (now.adapter, now.n) != (then.adapter, then.n) and now.adapter != night.results["publish"]["adapter"]:
        raise NightError(
            f"the night measured against {then.adapter or 'the base'} with N = {then.n}, but "
            f"{now.adapter or 'the base'} with N = {now.n} serves now: begin anew with --new"
        )


async def _start(night: Night, arm: Arm, *, share: float, reason: str) -> Policy:
    trial = f"{night.run.id}/{arm.adapter}"
    check = standing_check(_adapter(night)) if arm.adapter is not None else ()
    try:
        async with PolicyStore.opened(night.gateway) as store:
            return await start_canary(store, arm, share=share, trial=trial, reason=reason, check=check)
    except PolicyError as error:
        raise NightError(error.message) from error
