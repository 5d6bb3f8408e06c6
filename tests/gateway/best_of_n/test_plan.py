"""Plans: N from the policy or the caller, seeds that repeat, a slice that explores."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.plan import choose_arm, draw_seed, make_plan
from gateway.policy import Canary, Policy
from gateway.types import Message, Plan, Sampling

POLICY = Policy(version=3, adapter="rft-1", n=4, n_max=8, exploration=0.0)
HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def plan(
    policy: Policy = POLICY,
    *,
    seed: int | None = 1,
    temperature: float | None = 0.7,
    best_of: int | None = None,
    n: int = 1,
) -> Plan:
    sampling = Sampling(seed=seed, temperature=temperature)
    return make_plan(policy, policy.stable, messages=HELLO, sampling=sampling, best_of=best_of, n_returned=n)


def exploring(share: float) -> Policy:
    return POLICY.model_copy(update={"exploration": share})


def test_the_policy_decides_for_who_says_nothing() -> None:
    assert plan() == Plan(
        n_asked=4, n_ordinary=4, seed=1, adapter="rft-1", policy_version=3, exploration=False, n_returned=1
    )


def test_the_callers_n_goes_before_the_policys() -> None:
    assert plan(best_of=7).n_asked == 7


def test_temperature_0_is_one_draw() -> None:
    assert plan(temperature=0, best_of=8).n_asked == 1


def test_at_temperature_0_as_many_are_drawn_as_are_returned() -> None:
    twice = plan(temperature=0, best_of=8, n=2)
    assert (twice.n_asked, twice.n_returned) == (2, 2)


def test_n_answers_need_n_draws_even_when_the_policy_has_fewer() -> None:
    assert plan(n=6).n_asked == 6


def test_an_unset_seed_is_drawn_anew() -> None:
    assert plan(seed=None).seed != plan(seed=None).seed


def test_exploration_draws_n_max_and_remembers_what_it_would_have_drawn() -> None:
    explored = plan(exploring(1.0))
    assert (explored.exploration, explored.n_asked, explored.n_ordinary) == (True, 8, 4)
    assert explored.exploration_probability == 1.0


@pytest.mark.parametrize(("wanted", "explores"), [(7, True), (8, True), (9, False)])
def test_a_request_explores_up_to_as_many_answers_as_exploration_draws(wanted: int, explores: bool) -> None:
    """More answers than n_max draws cannot come out of an exploration of n_max."""
    assert explores == plan(exploring(1.0), n=wanted).exploration


def test_who_says_n_never_explores() -> None:
    asked = plan(exploring(1.0), best_of=2)
    assert (asked.exploration, asked.exploration_probability) == (False, 0.0)


def test_the_same_request_always_makes_the_same_plan() -> None:
    policy = exploring(0.5)
    assert {replace(plan(policy, seed=9)) for _ in range(5)} == {plan(policy, seed=9)}


def test_the_share_that_explores_is_the_policys() -> None:
    explored = sum(plan(exploring(0.25), seed=seed).exploration for seed in range(4000))
    assert 0.22 < explored / 4000 < 0.28


@given(st.integers(-(2**63), 2**63 - 1))
def test_draws_of_one_request_have_distinct_seeds_that_every_backend_takes(seed: int) -> None:
    seeds = [draw_seed(seed, index) for index in range(16)]
    assert len(set(seeds)) == 16
    assert all(0 <= one < 2**31 for one in seeds)
    assert seeds == [draw_seed(seed, index) for index in range(16)]


BESIDE = POLICY.model_copy(update={"canary": Canary(adapter="rft-2", n=2, urls=("http://new",), share=0.2, trial="a")})


def said(text: str) -> list[Message]:
    return [{"role": "system", "content": "today"}, {"role": "user", "content": text}]


def arms(policy: Policy, caller: str = "") -> list[str]:
    return [choose_arm(policy, messages=said(str(index)), caller=caller).name for index in range(4000)]


def test_without_a_second_policy_the_first_answers_all() -> None:
    assert choose_arm(POLICY, messages=HELLO, caller="") == POLICY.stable


def test_the_canarys_share_of_conversations_is_the_policys() -> None:
    assert 0.17 < arms(BESIDE).count("canary") / 4000 < 0.23


def test_a_conversation_keeps_its_arm_from_turn_to_turn() -> None:
    for index in range(50):
        first = said(str(index))
        later: list[Message] = [*first, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
        later[0] = {"role": "system", "content": "tomorrow"}
        assert choose_arm(BESIDE, messages=first, caller="") == choose_arm(BESIDE, messages=later, caller="")


def test_who_asks_and_which_trial_it_is_decide_too() -> None:
    """What everybody asks is not all one arm's, and it is not always the same who try what is new."""
    other_trial = BESIDE.model_copy(update={"canary": Canary(n=2, share=0.2, trial="b")})
    assert arms(BESIDE, "one") != arms(BESIDE, "two")
    assert arms(BESIDE) != arms(other_trial)


def test_promotion_moves_conversations_only_from_the_old_policy_to_the_new() -> None:
    old, new = POLICY.stable, BESIDE.canary
    assert new is not None
    promoted = POLICY.model_copy(
        update={
            "adapter": new.adapter,
            "canary": Canary(adapter=old.adapter, n=old.n, share=0.1, trial="a", holdback=True),
        }
    )
    after = arms(promoted)
    assert 0.08 < after.count("holdback") / 4000 < 0.12
    assert all(now == "stable" for before, now in zip(arms(BESIDE), after, strict=True) if before == "canary")


def test_text_that_is_not_unicode_has_an_arm_too() -> None:
    assert choose_arm(BESIDE, messages=said("\ud800"), caller="\ud801") is not None


def test_a_conversation_without_a_user_has_an_arm() -> None:
    messages: list[Message] = [{"role": "system", "content": "hello"}]
    assert choose_arm(BESIDE, messages=messages, caller="") is not None


def test_the_arm_decides_adapter_n_and_place() -> None:
    second = BESIDE.second
    assert second is not None
    made = make_plan(BESIDE, second, messages=HELLO, sampling=Sampling(seed=1), best_of=None, n_returned=1)
    assert (made.arm, made.adapter, made.n_asked, made.urls) == ("canary", "rft-2", 2, ("http://new",))
    assert made.exploration_probability == BESIDE.exploration


def test_single_draws_are_scored_while_two_policies_are_compared() -> None:
    """But not greedy ones nor those of callers who chose N: they are not compared."""
    assert (plan(POLICY).score_single, plan(BESIDE).score_single) == (False, True)
    assert (plan(BESIDE, temperature=0).score_single, plan(BESIDE, best_of=1).score_single) == (False, False)
    assert (plan(BESIDE).n_from_caller, plan(BESIDE, best_of=1).n_from_caller) == (False, True)


def test_the_arm_that_failed_is_in_the_plan() -> None:
    made = make_plan(
        POLICY, POLICY.stable, messages=HELLO, sampling=Sampling(), best_of=None, n_returned=1, arm_failed="canary"
    )
    assert "canary" == made.arm_failed
    assert plan().arm_failed is None


@pytest.mark.parametrize(
    ("seed", "index", "drawn"),
    [(7, 0, 77_869_568), (7, 1, 1_492_415_979), (-1, 0, 761_575_629), (2**63 - 1, 15, 218_976_361)],
)
def test_a_draws_seed_is_the_same_in_every_release(seed: int, index: int, drawn: int) -> None:
    """A caller who sends a seed gets the same answers again."""
    assert drawn == draw_seed(seed, index)


def test_a_seed_of_ours_has_63_bits() -> None:
    """More would not fit JSON readers that take whole numbers as signed 64 bits."""
    seeds = [plan(seed=None).seed for _ in range(200)]
    assert 0 <= min(seeds)
    assert 2**62 < max(seeds) < 2**63


def test_the_conversation_decides_too_who_explores() -> None:
    """Not the seed alone: callers who always send the same one would always explore, or never."""
    explored = {
        make_plan(
            exploring(0.5),
            POLICY.stable,
            messages=said(str(number)),
            sampling=Sampling(seed=1),
            best_of=None,
            n_returned=1,
        ).exploration
        for number in range(50)
    }
    assert {True, False} == explored


@pytest.mark.parametrize(("share", "explores"), [(0.0, False), (1.0, True)])
def test_no_share_never_explores_and_all_of_it_always(share: float, explores: bool) -> None:
    assert {explores} == {plan(exploring(share), seed=seed).exploration for seed in range(100)}
