"""Plans: N from the policy or the caller, reproducible seeds, a share of requests that explores."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.plan import draw_seed, make_plan
from gateway.policy import Canary, Policy
from gateway.types import AnswerRequest, Arm, Message, Plan, Sampling
from tests.gateway.best_of_n.fakes import HELLO

POLICY = Policy(version=3, adapter="rft-1", n=4, n_max=8, exploration=0.0)
COMPARED = POLICY.model_copy(update={"canary": Canary(adapter="rft-2", n=2, urls=("http://new",), share=0.2)})


def plan(
    policy: Policy = POLICY,
    *,
    seed: int | None = 1,
    temperature: float | None = 0.7,
    best_of: int | None = None,
    n: int = 1,
    messages: list[Message] = HELLO,
) -> Plan:
    """The plan of a request that the stable arm serves."""
    sampling = Sampling(seed=seed, temperature=temperature)
    request = AnswerRequest("ratchet", messages, sampling, best_of=best_of, n_returned=n)
    return make_plan(request, policy, policy.stable)


def exploring(share: float) -> Policy:
    return POLICY.model_copy(update={"exploration": share})


def test_the_policy_decides_where_the_caller_sets_nothing() -> None:
    assert plan() == Plan(
        n_asked=4,
        n_ordinary=4,
        seed=1,
        arm=Arm("stable", "rft-1", 4),
        policy_version=3,
        sampling=Sampling(seed=1, temperature=0.7),
        exploration=False,
        n_returned=1,
    )


def test_the_callers_n_goes_before_the_policys() -> None:
    assert plan(best_of=7).n_asked == 7


def test_temperature_0_draws_one_candidate() -> None:
    assert plan(temperature=0, best_of=8).n_asked == 1


def test_temperature_0_draws_as_many_candidates_as_are_returned() -> None:
    twice = plan(temperature=0, best_of=8, n=2)
    assert (twice.n_asked, twice.n_returned) == (2, 2)


@pytest.mark.parametrize(("of_caller", "of_arm", "sampled"), [(None, 0.4, 0.4), (1.1, 0.4, 1.1), (None, None, None)])
def test_the_arms_temperature_holds_where_the_caller_sets_none(
    of_caller: float | None, of_arm: float | None, sampled: float | None
) -> None:
    request = AnswerRequest("ratchet", HELLO, Sampling(temperature=of_caller, top_p=0.5))
    made = make_plan(request, POLICY, Arm("stable", None, 4, default_temperature=of_arm))
    assert Sampling(temperature=sampled, top_p=0.5) == made.sampling


def test_a_default_temperature_of_0_draws_one_candidate() -> None:
    assert 1 == make_plan(AnswerRequest("m", HELLO), POLICY, Arm("stable", None, 4, default_temperature=0)).n_asked


def test_n_answers_need_n_candidates_even_where_the_policy_has_fewer() -> None:
    assert plan(n=6).n_asked == 6


def test_an_unset_seed_is_random() -> None:
    assert plan(seed=None).seed != plan(seed=None).seed


def test_exploration_draws_n_max_and_keeps_the_ordinary_n() -> None:
    explored = plan(exploring(1.0))
    assert (explored.exploration, explored.n_asked, explored.n_ordinary) == (True, 8, 4)
    assert explored.exploration_probability == 1.0


@pytest.mark.parametrize(("wanted", "explores"), [(7, True), (8, True), (9, False)])
def test_a_request_for_more_than_n_max_answers_does_not_explore(wanted: int, explores: bool) -> None:
    assert explores == plan(exploring(1.0), n=wanted).exploration


def test_a_caller_who_chooses_n_never_explores() -> None:
    chosen = plan(exploring(1.0), best_of=2)
    assert (chosen.exploration, chosen.exploration_probability) == (False, 0.0)


def test_the_same_request_always_makes_the_same_plan() -> None:
    policy = exploring(0.5)
    assert {plan(policy, seed=9) for _ in range(5)} == {plan(policy, seed=9)}


def test_the_policys_share_of_requests_explores() -> None:
    explored = sum(plan(exploring(0.25), seed=seed).exploration for seed in range(4000))
    assert 0.22 < explored / 4000 < 0.28


@pytest.mark.parametrize(("share", "explores"), [(0.0, False), (1.0, True)])
def test_a_share_of_0_never_explores_and_a_share_of_1_always(share: float, explores: bool) -> None:
    assert {explores} == {plan(exploring(share), seed=seed).exploration for seed in range(100)}


def test_the_conversation_decides_too_whether_a_request_explores() -> None:
    """With the seed alone, callers who always send the same seed would always explore, or never."""
    explored = {
        plan(exploring(0.5), messages=[{"role": "user", "content": str(number)}]).exploration for number in range(50)
    }
    assert {True, False} == explored


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_requests_candidates_have_distinct_seeds_that_every_backend_takes(seed: int) -> None:
    seeds = [draw_seed(seed, index) for index in range(16)]
    assert len(set(seeds)) == 16
    assert all(0 <= one < 2**31 for one in seeds)
    assert seeds == [draw_seed(seed, index) for index in range(16)]


@pytest.mark.parametrize(
    ("seed", "index", "expected"),
    [(7, 0, 77_869_568), (7, 1, 1_492_415_979), (-1, 0, 761_575_629), (2**63 - 1, 15, 218_976_361)],
)
def test_a_candidates_seed_is_the_same_in_every_release(seed: int, index: int, expected: int) -> None:
    """A caller who sends a seed gets the same answers again."""
    assert expected == draw_seed(seed, index)


def test_random_seeds_have_63_bits() -> None:
    """More would not fit JSON readers that take whole numbers as signed 64 bits."""
    seeds = [plan(seed=None).seed for _ in range(200)]
    assert 0 <= min(seeds)
    assert 2**62 < max(seeds) < 2**63


def test_the_arm_decides_adapter_n_and_servers() -> None:
    second = COMPARED.second
    assert second is not None
    made = make_plan(AnswerRequest("ratchet", HELLO, Sampling(seed=1)), COMPARED, second)
    assert (made.arm, made.n_asked) == (Arm("canary", "rft-2", 2, ("http://new",)), 2)
    assert made.exploration_probability == COMPARED.exploration


def test_single_candidates_are_scored_while_two_policies_are_compared() -> None:
    """Except greedy ones and those of callers who chose N: these are not compared."""
    assert (plan(POLICY).score_single, plan(COMPARED).score_single) == (False, True)
    assert (plan(COMPARED, temperature=0).score_single, plan(COMPARED, best_of=1).score_single) == (False, False)
    assert (plan(COMPARED).n_from_caller, plan(COMPARED, best_of=1).n_from_caller) == (False, True)


def test_the_plan_names_the_arm_that_failed() -> None:
    made = make_plan(AnswerRequest("ratchet", HELLO), POLICY, POLICY.stable, arm_failed="canary")
    assert "canary" == made.arm_failed
    assert plan().arm_failed is None
