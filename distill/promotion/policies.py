"""Steps of a trial, each a policy document: canary, promotion, end of the watch, rollback.

Each step publishes one successor of the policy in force, with its reason, and is idempotent: a resumed night, or a
guard killed between publishing and saving, finds its step in the policy's history and does nothing. A trial that is
over never starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from distill.errors import PromotionError
from gateway.errors import PolicyError
from gateway.policy import Canary, Policy, PolicyStore
from gateway.types import Arm
from gateway.weight_check import WeightCheck

_HISTORY = 1_000
_ATTEMPTS = 5

Step = Callable[[Policy, Sequence[Policy]], Policy | None]


async def start_canary(
    store: PolicyStore, arm: Arm, *, share: float, trial: str, reason: str, check: WeightCheck = ()
) -> Policy:
    """Let ``arm`` answer a share of all conversations, the policy in force the others.

    This ends a canary or holdback of another trial; its conversations go to the stable policy.

    Args:
        store: Where the policy is published.
        arm: Adapter, N, URLs and default temperature of the new policy.
        share: Share of all conversations, in (0, 1).
        trial: The trial's unique name, such as the night's run and its adapter.
        reason: For the history.
        check: The adapter's standing weight check, which gateways repeat.

    Returns:
        The policy in force afterwards; one without this canary if its trial is over.

    Raises:
        PolicyError: Redis does not answer, or the policy is out of range.
    """
    wanted = _canary(arm, share=share, trial=trial)

    def step(current: Policy, known: Sequence[Policy]) -> Policy | None:
        ours = current.canary is not None and current.canary.trial == trial and not current.canary.holdback
        over = not ours and any(_trial(policy) == trial for policy in known)
        if over or current.canary == wanted:
            return None
        kept = {name: known_check for name, known_check in current.checks.items() if name == current.adapter}
        checks = kept | ({arm.adapter: check} if arm.adapter is not None and check else {})
        return current.successor(reason=reason, canary=wanted.model_dump(), checks=checks)

    return await _publish(store, step)


async def promote_canary(store: PolicyStore, *, trial: str, holdback_share: float, reason: str) -> Policy:
    """Let the canary answer all conversations but a share that the old policy keeps for comparison (the holdback).

    Raises:
        PromotionError: This trial's canary is not running: it never started, or was rolled back.
        PolicyError: Redis does not answer, or the policy is out of range.
    """

    def step(current: Policy, known: Sequence[Policy]) -> Policy | None:
        if _promotion(known, trial) is not None:
            return None
        new = current.canary
        if new is None or new.trial != trial:
            raise PromotionError(f"there is no canary of trial {trial} to promote")
        old = _canary(current.stable, share=holdback_share, trial=trial, holdback=True)
        return current.successor(reason=reason, **_served(new), canary=old.model_dump())

    return await _publish(store, step)


async def end_watch(store: PolicyStore, *, trial: str, reason: str) -> Policy:
    """End the holdback: the new policy answers all conversations.

    Raises:
        PolicyError: Redis does not answer.
    """

    def step(current: Policy, _: Sequence[Policy]) -> Policy | None:
        if current.canary is None or current.canary.trial != trial or not current.canary.holdback:
            return None
        return current.successor(reason=reason, canary=None)

    return await _publish(store, step)


async def roll_back(store: PolicyStore, *, reason: str, trial: str | None = None) -> Policy:
    """Roll back a canary, or else the newest promotion in force: adapter, N, URLs and temperature as before it.

    N is restored together with the adapter it was measured with, so a low N never stays without its adapter.

    Args:
        store: Where the policy is published.
        reason: For the history.
        trial: The trial to roll back; default: the newest.

    Raises:
        PromotionError: There is nothing to roll back.
        PolicyError: Redis does not answer.
    """

    def step(current: Policy, known: Sequence[Policy]) -> Policy | None:
        if trial is not None and any(policy.undoes == trial for policy in known):
            return None
        canary = current.canary
        if canary is not None and not canary.holdback and trial in (None, canary.trial):
            return current.successor(reason=reason, canary=None, undoes=canary.trial)
        promotion = _promotion(known, trial)
        if promotion is None or promotion.canary is None:
            raise PromotionError("there is no promotion to roll back; python -m gateway policy set changes N by hand")
        if promotion.adapter != current.adapter:
            raise PromotionError(
                f"the adapter in force is not the one that version {promotion.version} promoted: it was set by hand, "
                "and python -m gateway policy set changes it"
            )
        old = promotion.canary
        return current.successor(
            reason=reason,
            **_served(old),
            n_max=max(current.n_max, old.n),
            canary=None,
            undoes=old.trial,
        )

    return await _publish(store, step)


def rolled_back(known: Sequence[Policy]) -> set[str]:
    """Return the adapters whose trial was rolled back, except those that serve now: they were published again by hand.

    Args:
        known: Every policy of the history, the one in force first.
    """
    undone = {policy.undoes for policy in known}
    adapters = set()
    for policy in known:
        if policy.canary is not None and policy.canary.trial in undone:
            adapters.add(policy.adapter if policy.canary.holdback else policy.canary.adapter)
    now = known[0]
    serving = {now.adapter, None if now.canary is None else now.canary.adapter}
    return {adapter for adapter in adapters - serving if adapter is not None}


async def known_policies(store: PolicyStore) -> list[Policy]:
    """Return the policy in force, then those of the history; without a history in Redis, the policy in force alone.

    Raises:
        PolicyError: Redis does not answer.
    """
    await store.refresh()
    if store.last_error is not None:
        raise PolicyError(f"the policy could not be read: {store.last_error}")
    current = store.current
    return [current, *(policy for policy in await store.history(_HISTORY) if policy.version < current.version)]


async def _publish(store: PolicyStore, step: Step) -> Policy:
    """Publish one step after the policy in force; retry after the newer one if another was published meanwhile."""
    for attempt in range(_ATTEMPTS):
        known = await known_policies(store)
        policy = step(known[0], known)
        if policy is None:
            return known[0]
        try:
            await store.publish(policy)
        except PolicyError:
            if attempt == _ATTEMPTS - 1 or (await known_policies(store))[0].version < policy.version:
                raise
        else:
            return policy
    raise AssertionError("the last attempt returns or raises")


def _promotion(known: Iterable[Policy], trial: str | None) -> Policy | None:
    """Return the newest version that promoted a canary (of this trial, if given) and was not undone."""
    undone = set()
    for policy in known:
        undone.add(policy.undoes)
        canary = policy.canary
        if canary is not None and canary.holdback and canary.trial not in undone and trial in (None, canary.trial):
            return policy
    return None


def _trial(policy: Policy) -> str | None:
    return None if policy.canary is None else policy.canary.trial


def _canary(arm: Arm, *, share: float, trial: str, holdback: bool = False) -> Canary:
    return Canary(
        adapter=arm.adapter,
        n=arm.n,
        urls=arm.urls,
        default_temperature=arm.default_temperature,
        share=share,
        trial=trial,
        holdback=holdback,
    )


def _served(canary: Canary) -> dict[str, object]:
    return canary.model_dump(include={"adapter", "n", "urls", "default_temperature"})
