"""Plans: N from the policy or the caller, seeds that repeat, a slice that explores."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.best_of_n.plan import draw_seed, make_plan
from gateway.policy import Policy
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
    return make_plan(policy, messages=HELLO, sampling=sampling, best_of=best_of, n_returned=n)


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


def test_n_answers_need_n_draws_even_when_the_policy_has_fewer() -> None:
    assert plan(n=6).n_asked == 6


def test_an_unset_seed_is_drawn_anew() -> None:
    assert plan(seed=None).seed != plan(seed=None).seed


def test_exploration_draws_n_max_and_remembers_what_it_would_have_drawn() -> None:
    explored = plan(exploring(1.0))
    assert (explored.exploration, explored.n_asked, explored.n_ordinary) == (True, 8, 4)
    assert explored.exploration_probability == 1.0


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
