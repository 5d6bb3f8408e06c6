"""The arm that serves a conversation, and the arm that takes over after a failure."""

import pytest

from gateway.best_of_n.arms import Arms, choose_arm
from gateway.errors import (
    AdapterMissing,
    BackendFailed,
    BackendOverloaded,
    BackendRejected,
    BackendUnreachable,
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    Overloaded,
    RequestContained,
)
from gateway.policy import Base, Canary, Policy
from gateway.types import Arm, Message
from tests.gateway.best_of_n.fakes import HELLO

ALONE = Policy(version=3, adapter="rft-1", n=4, n_max=8)
SHARED = ALONE.model_copy(update={"canary": Canary(adapter="rft-2", n=2, urls=("http://new",), share=0.2, trial="a")})


def conversation(text: str) -> list[Message]:
    return [{"role": "system", "content": "today"}, {"role": "user", "content": text}]


def chosen_arms(policy: Policy, caller: str = "") -> list[str]:
    """The arms of 4000 conversations."""
    return [choose_arm(policy, messages=conversation(str(index)), caller=caller).name for index in range(4000)]


def test_without_a_second_policy_the_stable_arm_serves_all() -> None:
    assert choose_arm(ALONE, messages=HELLO, caller="") == ALONE.stable


def test_the_canary_serves_its_share_of_conversations() -> None:
    assert 0.17 < chosen_arms(SHARED).count("canary") / 4000 < 0.23


def test_a_conversation_keeps_its_arm_from_turn_to_turn() -> None:
    for index in range(50):
        first = conversation(str(index))
        later: list[Message] = [*first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
        later[0] = {"role": "system", "content": "tomorrow"}
        assert choose_arm(SHARED, messages=first, caller="") == choose_arm(SHARED, messages=later, caller="")


def test_caller_and_trial_decide_too() -> None:
    """A message that many callers send is not always served by one arm, and each trial falls on other callers."""
    other_trial = SHARED.model_copy(update={"canary": Canary(n=2, share=0.2, trial="b")})
    assert chosen_arms(SHARED, "one") != chosen_arms(SHARED, "two")
    assert chosen_arms(SHARED) != chosen_arms(other_trial)


def test_a_promotion_moves_conversations_only_from_the_old_policy_to_the_new_one() -> None:
    old, new = ALONE.stable, SHARED.canary
    assert new is not None
    promoted = ALONE.model_copy(
        update={
            "adapter": new.adapter,
            "canary": Canary(adapter=old.adapter, n=old.n, share=0.1, trial="a", holdback=True),
        }
    )
    after = chosen_arms(promoted)
    assert 0.08 < after.count("holdback") / 4000 < 0.12
    assert all(now == "stable" for before, now in zip(chosen_arms(SHARED), after, strict=True) if before == "canary")


def test_text_that_is_not_unicode_has_an_arm() -> None:
    assert choose_arm(SHARED, messages=conversation("\ud800"), caller="\ud801") in (SHARED.stable, SHARED.second)


def test_a_conversation_without_a_user_message_has_an_arm() -> None:
    messages: list[Message] = [{"role": "system", "content": "hello"}]
    assert choose_arm(SHARED, messages=messages, caller="") in (SHARED.stable, SHARED.second)


POLICY = Policy(version=3, n=4, n_max=8, canary=Canary(adapter="new", n=2, share=0.999))
CANARY = Arm("canary", "new", 2)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("error", [BackendFailed("no adapter"), BackendUnreachable("down"), DeadlineExceeded("slow")])
def test_the_stable_arm_replaces_a_canary_that_failed(error: GatewayError) -> None:
    assert Arms(aside_s=5).replacement(POLICY, CANARY, error) == POLICY.stable


@pytest.mark.parametrize("error", [InvalidRequest("no", param="messages"), Overloaded("full")])
def test_an_error_that_no_arm_can_mend_has_no_replacement(error: GatewayError) -> None:
    assert Arms(aside_s=5).replacement(POLICY, CANARY, error) is None


def test_nothing_replaces_the_stable_arm_of_a_policy_without_an_adapter() -> None:
    alone = POLICY.model_copy(update={"canary": None})
    assert Arms(aside_s=5).replacement(POLICY, POLICY.stable, BackendFailed("no")) is None
    assert Arms(aside_s=5).replacement(alone, alone.stable, BackendFailed("no")) is None
    assert Arms(aside_s=5).replacement(alone, alone.stable, LOST) is None


def test_a_failed_arm_is_set_aside_for_a_while() -> None:
    clock = Clock()
    arms = Arms(aside_s=5, clock=clock)
    assert arms.choose(POLICY, messages=HELLO, caller="") == (CANARY, None)
    arms.replacement(POLICY, CANARY, BackendUnreachable("down"))
    clock.now = 4.9
    assert arms.choose(POLICY, messages=HELLO, caller="") == (POLICY.stable, "canary")
    clock.now = 5.0
    assert arms.choose(POLICY, messages=HELLO, caller="") == (CANARY, None)


def test_a_new_canary_is_not_set_aside_with_the_failed_one() -> None:
    arms = Arms(aside_s=5)
    arms.replacement(POLICY, CANARY, BackendUnreachable("down"))
    next_one = POLICY.model_copy(update={"canary": Canary(adapter="newer", n=2, share=0.999)})
    assert arms.choose(next_one, messages=HELLO, caller="") == (next_one.second, None)


def test_a_rejected_request_is_tried_again_and_sets_no_arm_aside() -> None:
    arms = Arms(aside_s=5)
    assert arms.replacement(POLICY, CANARY, BackendRejected("too long")) == POLICY.stable
    assert arms.choose(POLICY, messages=HELLO, caller="") == (CANARY, None)


def test_an_overloaded_pool_is_not_asked_twice() -> None:
    """A canary with a pool of its own is replaced: the stable arm's pool may have capacity."""
    own_pool = POLICY.model_copy(update={"canary": Canary(n=2, share=0.999, urls=("http://new",))})
    assert own_pool.second is not None
    assert Arms(aside_s=5).replacement(POLICY, CANARY, BackendOverloaded("full")) is None
    assert Arms(aside_s=5).replacement(own_pool, own_pool.second, BackendOverloaded("full")) == own_pool.stable


LOST = AdapterMissing("no replica has it")
TUNED = Policy(version=4, adapter="old", n=2, n_max=8, base=Base(n=6, default_temperature=0.7))
BOTH = TUNED.model_copy(update={"canary": Canary(adapter="new", n=1, share=0.999)})


def test_the_base_at_its_own_n_replaces_a_stable_arm_whose_adapter_is_missing() -> None:
    arms = Arms(aside_s=5)
    base = Arm("base", None, 6, (), 0.7)
    assert arms.replacement(TUNED, TUNED.stable, LOST) == base
    assert arms.choose(TUNED, messages=HELLO, caller="") == (base, "stable")


@pytest.mark.parametrize("error", [BackendFailed("500"), BackendUnreachable("down"), DeadlineExceeded("slow")])
def test_the_base_replaces_the_stable_arm_for_no_other_error(error: GatewayError) -> None:
    assert Arms(aside_s=5).replacement(TUNED, TUNED.stable, error) is None


def test_a_document_without_a_base_takes_n_from_the_settings() -> None:
    """Documents of older programs have no base."""
    older = TUNED.model_copy(update={"base": None})
    base = Arms(aside_s=5, base_n=4).replacement(older, older.stable, LOST)
    assert base is not None
    assert (None, 4) == (base.adapter, base.n)


def test_with_both_adapters_missing_the_base_serves_and_the_first_failure_is_named() -> None:
    arms = Arms(aside_s=5)
    assert BOTH.second is not None
    assert arms.replacement(BOTH, BOTH.second, LOST) == BOTH.stable
    base = arms.replacement(BOTH, BOTH.stable, LOST)
    assert base is not None
    assert arms.choose(BOTH, messages=HELLO, caller="") == (base, "canary")


def test_nothing_replaces_the_base() -> None:
    assert Arms(aside_s=5).replacement(TUNED, TUNED.base_arm(1), LOST) is None


@pytest.mark.parametrize("policy", [POLICY, BOTH])
def test_a_request_that_broke_servers_goes_to_no_other_arm(policy: Policy) -> None:
    assert policy.second is not None
    assert Arms(aside_s=5).replacement(policy, policy.second, RequestContained("broke two")) is None


def test_the_stable_arm_replaces_a_holdback_that_failed() -> None:
    watched = POLICY.model_copy(update={"canary": Canary(adapter="old", n=2, share=0.999, holdback=True)})
    assert watched.second is not None
    assert "holdback" == watched.second.name
    assert Arms(aside_s=5).replacement(watched, watched.second, BackendFailed("no")) == watched.stable
