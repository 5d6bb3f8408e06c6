"""The steps that roll out the chosen checkpoint: publish, load, weight check ("canary"), promote.

From there the guard (``python -m distill watch``) either gives the adapter all traffic or rolls it back.
"""

from __future__ import annotations

import asyncio

from distill.errors import NightError
from distill.evaluation.sample_store import adopt
from distill.nightly.checkpoint_adapters import publish_checkpoint
from distill.nightly.context import Night
from distill.nightly.manifest import serving_policy
from distill.nightly.results import (
    CanaryResult,
    DrawResult,
    GateResult,
    LoadResult,
    PromoteResult,
    PublishResult,
    TrainResult,
)
from distill.nightly.sample_plan import compared_policies
from distill.promotion.adapter import Adapter
from distill.promotion.load import load as load_adapter
from distill.promotion.policies import start_canary
from distill.promotion.weight_check import check_replicas, standing_check
from gateway.errors import PolicyError
from gateway.policy import Policy, PolicyStore
from gateway.types import Arm


def publish(night: Night, trained: TrainResult, drawn: DrawResult, decided: GateResult) -> PublishResult:
    """Publish the chosen checkpoint as an immutable adapter; keep its samples for the next night to measure against."""
    checkpoint = next(path for path in trained.checkpoints if path.name == decided.checkpoint)
    settings = night.settings
    adapter = publish_checkpoint(night, checkpoint, settings.promotion.adapters_dir, n_allowed=decided.n_new)
    # These samples selected the checkpoint, so its mean is biased up: the next night's test is slightly conservative.
    policies = compared_policies(night, drawn.candidates, drawn.behaviour)
    path = next(policy.path for policy in policies if policy.name == checkpoint.name)
    adopt(path, settings.evaluation.draws_dir / path.name, max_tokens=settings.evaluation.max_tokens)
    night.print(f"published as {adapter.name}")
    return PublishResult(adapter.name, adapter.folder)


def load(night: Night, published: PublishResult) -> LoadResult:
    """Load the adapter on every replica of the fleet."""
    backend = night.gateway.backend
    asyncio.run(load_adapter(Adapter.open(published.path), backend, night.settings.promotion))
    return LoadResult(len(backend.urls))


def check_weights(night: Night, published: PublishResult) -> CanaryResult:
    """Check on every replica that the adapter computes what it should."""
    checks = asyncio.run(check_replicas(Adapter.open(published.path), night.gateway.backend))
    found = "; ".join(map(str, checks))
    night.print(found)
    return CanaryResult(found)


def promote(night: Night, decided: GateResult, published: PublishResult) -> PromoteResult:
    """Give the adapter with its new N a share of traffic; the guard watches it."""
    _check_serving_policy_unchanged(night, published)
    arm = Arm(name="canary", adapter=published.adapter, n=decided.n_new, default_temperature=decided.temperature)
    policy = asyncio.run(_start_trial(night, arm, Adapter.open(published.path), reason=decided.why))
    share = policy.canary.share if policy.canary is not None and policy.canary.adapter == arm.adapter else None
    night.print(
        f"policy {policy.version}: {arm.adapter} with N = {arm.n} answers {share:.0%} of conversations; "
        "the guard (python -m distill watch) gives it all of them, or takes it back"
        if share is not None
        else f"policy {policy.version}: this trial is over already"
    )
    return PromoteResult(policy.version, share)


def _check_serving_policy_unchanged(night: Night, published: PublishResult) -> None:
    """Refuse to promote if another policy serves than the one that the night measured against.

    Raises:
        NightError: Names both.
    """
    now, then = asyncio.run(serving_policy(night.gateway)), night.serving
    if (now.adapter, now.n) != (then.adapter, then.n) and now.adapter != published.adapter:
        raise NightError(
            f"the night measured against {then.adapter or 'the base'} with N = {then.n}, but "
            f"{now.adapter or 'the base'} with N = {now.n} serves now: begin anew with --new"
        )


async def _start_trial(night: Night, arm: Arm, adapter: Adapter, *, reason: str) -> Policy:
    trial, share = f"{night.run.id}/{arm.adapter}", night.settings.promotion.canary_share
    try:
        async with PolicyStore.opened(night.gateway) as store:
            return await start_canary(
                store, arm, share=share, trial=trial, reason=reason, check=standing_check(adapter)
            )
    except PolicyError as error:
        raise NightError(error.message) from error
