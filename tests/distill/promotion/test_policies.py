"""Canary, promotion, end of the watch, rollback: each published once, and N is restored with its adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from distill.errors import PromotionError
from distill.promotion.policies import (
    end_watch,
    known_policies,
    promote_canary,
    roll_back,
    rolled_back,
    start_canary,
)
from gateway.errors import PolicyError
from gateway.policy import Canary, Policy, PolicyStore
from gateway.types import Arm
from gateway.weight_check import CheckedPrompt, WeightCheck
from tests.redis_server import RedisServer

FIRST = Arm("canary", "rft-1", 4, ("http://pool-1",), 0.7)
SECOND = Arm("canary", "rft-2", 2)


async def start(store: PolicyStore, arm: Arm = FIRST, trial: str = "night-1") -> Policy:
    return await start_canary(store, arm, share=0.1, trial=trial, reason=f"{trial} passed the gate")


async def promote(store: PolicyStore, trial: str = "night-1") -> Policy:
    return await promote_canary(store, trial=trial, holdback_share=0.05, reason=f"{trial} is good enough")


async def promoted(store: PolicyStore, arm: Arm = FIRST, trial: str = "night-1") -> Policy:
    """All steps of one night."""
    await start(store, arm, trial)
    await promote(store, trial)
    return await end_watch(store, trial=trial, reason="watched")


def served(policy: Policy | Canary) -> tuple[str | None, int, tuple[str, ...], float | None]:
    return policy.adapter, policy.n, policy.urls, policy.default_temperature


async def test_a_canary_answers_a_share_next_to_the_policy_in_force(store: PolicyStore) -> None:
    policy = await start(store)
    assert (None, 8, (), None) == served(policy)
    canary = policy.canary
    assert canary is not None
    assert ("rft-1", 4, ("http://pool-1",), 0.7) == served(canary)
    assert (0.1, "night-1", False) == (canary.share, canary.trial, canary.holdback)
    assert "night-1 passed the gate" == policy.reason


async def test_promotion_exchanges_both_policies(store: PolicyStore) -> None:
    await start(store)
    policy = await promote(store)
    assert ("rft-1", 4, ("http://pool-1",), 0.7) == served(policy)
    assert Canary(adapter=None, n=8, share=0.05, trial="night-1", holdback=True) == policy.canary
    assert (await end_watch(store, trial="night-1", reason="watched")).second is None


async def test_a_repeated_step_changes_nothing(store: PolicyStore) -> None:
    """A resumed night finds the step in the history, which holds each step once."""
    for step in (start, start, promote, promote, start):
        await step(store)
    for _ in range(2):
        await end_watch(store, trial="night-1", reason="watched")
    await promote(store)
    await start(store)
    for _ in range(2):
        await roll_back(store, trial="night-1", reason="worse")
    await start(store)
    assert ["worse", "watched", "night-1 is good enough", "night-1 passed the gate"] == [
        policy.reason for policy in await store.history()
    ]


async def test_a_canary_whose_share_changes_is_published_again(store: PolicyStore) -> None:
    await start(store)
    wider = await start_canary(store, FIRST, share=0.5, trial="night-1", reason="wider")
    assert wider.canary is not None
    assert (2, 0.5) == (wider.version, wider.canary.share)


async def test_weight_checks_are_part_of_the_policy_that_names_their_adapters(store: PolicyStore) -> None:
    """Also after the promotion, and only while the adapter serves."""
    check = (CheckedPrompt(prompt="p", tokens=("a",), adapter=({"a": -0.1},), base=({"a": -2.0},)),)
    await start_canary(store, FIRST, share=0.1, trial="night-1", reason="first", check=check)
    promoted = await promote(store)
    assert {FIRST.adapter: check} == promoted.checks
    assert [(FIRST.adapter, check)] == [(arm.adapter, found) for arm, found in promoted.weight_checks()]
    next_one = replace(FIRST, adapter="rft-20261124-0123456789ab")
    both = await start_canary(store, next_one, share=0.1, trial="night-2", reason="next", check=check)
    assert {FIRST.adapter, next_one.adapter} == set(both.checks)
    last = replace(FIRST, adapter="rft-20261125-0123456789ab")
    assert {FIRST.adapter} == set((await start_canary(store, last, share=0.1, trial="night-3", reason="last")).checks)


async def test_a_canary_that_was_rolled_back_is_not_promoted(store: PolicyStore) -> None:
    await start(store)
    policy = await roll_back(store, reason="worse")
    assert ((None, 8, (), None), None, "night-1") == (served(policy), policy.canary, policy.undoes)
    with pytest.raises(PromotionError, match="no canary of trial night-1"):
        await promote(store)


@pytest.mark.parametrize("watched", [False, True])
async def test_a_rollback_restores_adapter_n_urls_and_temperature(store: PolicyStore, watched: bool) -> None:
    """During the watch and after it."""
    before = await store_with(store, default_temperature=0.4, urls=("http://old",))
    await start(store)
    await promote(store)
    if watched:
        await end_watch(store, trial="night-1", reason="watched")
    after = await roll_back(store, reason="guard: worse")
    assert served(before) == served(after) == (None, 8, ("http://old",), 0.4)
    assert (None, "guard: worse") == (after.canary, after.reason)


async def store_with(store: PolicyStore, **changes: object) -> Policy:
    await store.publish(store.current.successor(reason="by hand", **changes))
    return store.current


async def test_repeated_rollbacks_go_back_night_by_night_with_their_n(store: PolicyStore) -> None:
    """A rollback never returns to a policy that was rolled back."""
    await promoted(store)
    await promoted(store, SECOND, "night-2")
    assert ("rft-2", 2) == served(store.current)[:2]
    assert ("rft-1", 4) == served(await roll_back(store, reason="worse"))[:2]
    assert (None, 8) == served(await roll_back(store, reason="worse too"))[:2]
    with pytest.raises(PromotionError, match="no promotion to roll back"):
        await roll_back(store, reason="once more")


async def test_a_night_after_a_rollback_is_rolled_back_to_what_served_before_it(
    store: PolicyStore,
) -> None:
    await promoted(store)
    await promoted(store, SECOND, "night-2")
    await roll_back(store, reason="worse")
    await promoted(store, Arm("canary", "rft-3", 1), "night-3")
    assert ("rft-1", 4) == served(await roll_back(store, reason="worse"))[:2]


async def test_an_n_lowered_with_the_same_adapter_is_restored(store: PolicyStore) -> None:
    await promoted(store)
    await promoted(store, Arm("canary", "rft-1", 2, ("http://pool-1",), 0.7), "night-2")
    assert ("rft-1", 4) == served(await roll_back(store, reason="worse"))[:2]


async def test_n_is_restored_even_above_a_lowered_n_max(store: PolicyStore) -> None:
    await promoted(store)
    await store_with(store, n_max=4)
    assert (8, 8) == ((await roll_back(store, reason="worse")).n, store.current.n_max)


async def test_a_new_canary_ends_the_watch_of_the_night_before(store: PolicyStore) -> None:
    """Its rollback leaves that night's adapter in force; the next rollback takes back that one."""
    await start(store)
    await promote(store)
    policy = await start(store, SECOND, "night-2")
    assert policy.canary is not None
    assert ("rft-1", "rft-2", False) == (policy.adapter, policy.canary.adapter, policy.canary.holdback)
    assert ("rft-1", 4) == served(await roll_back(store, reason="worse"))[:2]
    assert (None, 8) == served(await roll_back(store, reason="worse too"))[:2]


async def test_what_was_set_by_hand_is_not_rolled_back(store: PolicyStore) -> None:
    await promoted(store)
    await store_with(store, adapter="mine", n=6)
    with pytest.raises(PromotionError, match="set by hand"):
        await roll_back(store, reason="worse")


async def test_without_a_history_a_rollback_is_possible_during_the_watch(
    store: PolicyStore, redis_server: RedisServer
) -> None:
    """The holdback is the policy before it."""
    await start(store)
    await promote(store)
    with redis_server.client() as client:
        client.delete("ratchet:policy:history")
    assert (None, 8) == served(await roll_back(store, reason="worse"))[:2]


async def test_a_step_follows_a_policy_published_in_between(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is repeated from the newer version."""
    publish = store.publish

    async def overtaken(policy: Policy) -> None:
        monkeypatch.undo()
        await publish(store.current.successor(reason="by hand", exploration=0.5))
        await publish(policy)

    monkeypatch.setattr(store, "publish", overtaken)
    policy = await start(store)
    assert (2, 0.5, 4) == (policy.version, policy.exploration, policy.canary.n if policy.canary else 0)


@pytest.mark.parametrize(("overtaken", "taken"), [(4, True), (5, False)])
async def test_a_step_is_tried_five_times(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch, overtaken: int, taken: bool
) -> None:
    publish, attempts = store.publish, []

    async def overtake(policy: Policy) -> None:
        attempts.append(policy)
        if len(attempts) <= overtaken:
            await publish(store.current.successor(reason="by hand"))
        await publish(policy)

    monkeypatch.setattr(store, "publish", overtake)
    if taken:
        assert 5 == (await start(store)).version
    else:
        with pytest.raises(PolicyError):
            await start(store)
    assert 5 == len(attempts)


def check_of(answer: str) -> WeightCheck:
    return (CheckedPrompt(prompt="p", tokens=(answer,), adapter=({answer: -0.1},), base=({answer: -2.0},)),)


async def test_a_canarys_weight_check_is_added_to_that_of_the_adapter_in_force(store: PolicyStore) -> None:
    """Checks of adapters that no longer serve are removed."""
    checks = {name: check_of(name) for name in ("rft-0", "rft-1", "rft-2")}
    await store_with(store, adapter="rft-1", checks={name: checks[name] for name in ("rft-0", "rft-1")})
    policy = await start_canary(store, SECOND, share=0.1, trial="a", reason="", check=checks["rft-2"])
    assert {name: checks[name] for name in ("rft-1", "rft-2")} == policy.checks
    policy = await start_canary(store, SECOND, share=0.2, trial="a", reason="")
    assert {"rft-1": checks["rft-1"]} == policy.checks
    policy = await start_canary(store, Arm("canary", None, 4), share=0.1, trial="b", reason="", check=checks["rft-2"])
    assert {"rft-1": checks["rft-1"]} == policy.checks


async def test_without_redis_no_step_is_taken(store: PolicyStore, redis_server: RedisServer) -> None:
    redis_server.kill()
    with pytest.raises(PolicyError, match="could not be read"):
        await start(store)


async def test_a_canary_out_of_range_is_refused(store: PolicyStore) -> None:
    with pytest.raises(PolicyError, match="n_max"):
        await start(store, Arm("canary", "rft-1", 9))
    assert 0 == (await known_policies(store))[0].version


async def test_rolled_back_adapters_are_returned_from_every_phase(store: PolicyStore) -> None:
    await promoted(store)
    assert set() == rolled_back(await known_policies(store))
    await start(store, SECOND, "night-2")
    assert set() == rolled_back(await known_policies(store)), "a canary that runs was not taken back"
    await roll_back(store, reason="a canary that loses")
    assert {"rft-2"} == rolled_back(await known_policies(store))
    await roll_back(store, reason="a promotion that was wrong", trial="night-1")
    assert {"rft-1", "rft-2"} == rolled_back(await known_policies(store))
    current = (await known_policies(store))[0]
    await store.publish(current.successor(reason="by hand, again", adapter="rft-1"))
    assert {"rft-2"} == rolled_back(await known_policies(store))


async def test_the_base_is_never_a_rolled_back_adapter(store: PolicyStore) -> None:
    await store.publish(store.current.successor(reason="by hand", adapter="rft-9"))
    await start(store, Arm("canary", None, 4), "night-1")
    await roll_back(store, reason="the adapter is better")
    assert set() == rolled_back(await known_policies(store))


async def test_a_rollback_works_with_a_full_redis(store: PolicyStore, redis_server: RedisServer) -> None:
    """A canary and a promotion are rolled back before anybody frees memory."""
    await start(store)
    redis_server.fill()
    assert None is (await roll_back(store, reason="bad")).canary
    redis_server.drain()
    await promoted(store, SECOND, "night-2")
    redis_server.fill()
    assert (None, 8) == served(await roll_back(store, reason="bad"))[:2]
