"""Which policy answers, and who takes over when the second one cannot."""

import pytest

from gateway.best_of_n.arms import Arms
from gateway.best_of_n.plan import make_plan
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
from gateway.policy import Arm, Base, Canary, Policy
from gateway.types import Message, Plan, Sampling

POLICY = Policy(version=3, n=4, n_max=8, canary=Canary(adapter="new", n=2, share=0.999))
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def plan(arm: Arm | None = None, policy: Policy = POLICY) -> Plan:
    return make_plan(
        policy, arm or policy.second or policy.stable, messages=HELLO, sampling=Sampling(), best_of=None, n_returned=1
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("error", [BackendFailed("no adapter"), BackendUnreachable("down"), DeadlineExceeded("slow")])
def test_what_the_second_policy_cannot_answer_the_stable_one_does(error: GatewayError) -> None:
    assert Arms(aside_s=5).instead(POLICY, plan(), error) == POLICY.stable


@pytest.mark.parametrize("error", [InvalidRequest("no", param="messages"), Overloaded("full")])
def test_what_no_policy_could_mend_stays_an_error(error: GatewayError) -> None:
    assert Arms(aside_s=5).instead(POLICY, plan(), error) is None


def test_the_stable_policy_has_nobody_behind_it() -> None:
    alone = POLICY.model_copy(update={"canary": None})
    assert Arms(aside_s=5).instead(POLICY, plan(POLICY.stable), BackendFailed("no")) is None
    assert Arms(aside_s=5).instead(alone, plan(policy=alone), BackendFailed("no")) is None


def test_a_failed_arm_is_set_aside_for_a_while() -> None:
    clock = Clock()
    arms = Arms(aside_s=5, clock=clock)
    assert arms.choose(POLICY, messages=HELLO, caller="") == (POLICY.second, None)
    arms.instead(POLICY, plan(), BackendUnreachable("down"))
    clock.now = 4.9
    assert arms.choose(POLICY, messages=HELLO, caller="") == (POLICY.stable, "canary")
    clock.now = 5.0
    assert arms.choose(POLICY, messages=HELLO, caller="") == (POLICY.second, None)


def test_another_canary_is_not_set_aside_with_the_failed_one() -> None:
    arms = Arms(aside_s=5)
    arms.instead(POLICY, plan(), BackendUnreachable("down"))
    next_one = POLICY.model_copy(update={"canary": Canary(adapter="newer", n=2, share=0.999)})
    assert arms.choose(next_one, messages=HELLO, caller="") == (next_one.second, None)


def test_a_refused_request_is_tried_again_and_sets_nothing_aside() -> None:
    arms = Arms(aside_s=5)
    assert arms.instead(POLICY, plan(), BackendRejected("too long")) == POLICY.stable
    assert arms.choose(POLICY, messages=HELLO, caller="") == (POLICY.second, None)


def test_an_overloaded_backend_is_not_asked_twice() -> None:
    """A pool of the second policy's own may be full while the other is not."""
    own_pool = POLICY.model_copy(update={"canary": Canary(n=2, share=0.999, urls=("http://new",))})
    assert Arms(aside_s=5).instead(POLICY, plan(), BackendOverloaded("full")) is None
    assert Arms(aside_s=5).instead(own_pool, plan(policy=own_pool), BackendOverloaded("full")) == own_pool.stable


LOST = AdapterMissing("no replica has it")
TUNED = Policy(version=4, adapter="old", n=2, n_max=8, base=Base(n=6, default_temperature=0.7))
BOTH = TUNED.model_copy(update={"canary": Canary(adapter="new", n=1, share=0.999)})


def test_the_base_answers_at_its_own_n_for_a_policy_whose_adapter_no_server_has() -> None:
    arms = Arms(aside_s=5)
    base = Arm("base", None, 6, (), 0.7)
    assert arms.instead(TUNED, plan(TUNED.stable, TUNED), LOST) == base
    assert arms.choose(TUNED, messages=HELLO, caller="") == (base, "stable")


@pytest.mark.parametrize("error", [BackendFailed("500"), BackendUnreachable("down"), DeadlineExceeded("slow")])
def test_the_base_answers_for_nothing_else(error: GatewayError) -> None:
    assert Arms(aside_s=5).instead(TUNED, plan(TUNED.stable, TUNED), error) is None


def test_a_document_without_a_base_has_the_settings_n() -> None:
    """Those of older programs say nothing of it."""
    older = TUNED.model_copy(update={"base": None})
    answering = Arms(aside_s=5, base_n=4).instead(older, plan(older.stable, older), LOST)
    assert answering is not None
    assert (None, 4) == (answering.adapter, answering.n)


def test_with_both_adapters_lost_the_base_answers_and_the_first_failure_is_told() -> None:
    arms = Arms(aside_s=5)
    assert arms.instead(BOTH, plan(BOTH.second, BOTH), LOST) == BOTH.stable
    base = arms.instead(BOTH, plan(BOTH.stable, BOTH), LOST)
    assert base is not None
    assert arms.choose(BOTH, messages=HELLO, caller="") == (base, "canary")


def test_the_base_has_nobody_behind_it() -> None:
    base = TUNED.base_arm(1)
    assert Arms(aside_s=5).instead(TUNED, plan(base, TUNED), LOST) is None


@pytest.mark.parametrize("policy", [POLICY, BOTH])
def test_a_request_that_broke_servers_breaks_no_other_policys(policy: Policy) -> None:
    assert Arms(aside_s=5).instead(policy, plan(policy.second, policy), RequestContained("broke two")) is None


def test_the_stable_policy_answers_for_a_holdback_that_cannot() -> None:
    watched = POLICY.model_copy(update={"canary": Canary(adapter="old", n=2, share=0.999, holdback=True)})
    assert watched.second is not None
    assert "holdback" == watched.second.name
    assert Arms(aside_s=5).instead(watched, plan(policy=watched), BackendFailed("no")) == watched.stable


def test_a_policy_of_the_base_has_no_other_base_behind_it() -> None:
    alone = POLICY.model_copy(update={"canary": None})
    assert Arms(aside_s=5).instead(alone, plan(alone.stable, alone), LOST) is None
