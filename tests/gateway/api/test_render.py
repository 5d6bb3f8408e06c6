"""The answer's body and headers, field by field: callers read them by name."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.api import render
from gateway.types import Answer, Arm, Candidate, Outcome, Plan, Selection, Timings, Unusable

TIMINGS = Timings(queue_ms=1.00049, generate_ms=20.0004, score_ms=3.0006, journal_ms=0.5, total_ms=30.25)


def outcome(*, n_returned: int = 2) -> Outcome:
    """The outcome of four candidates: two are returned, one is not JSON, one failed after 5 tokens."""
    candidates = [
        Candidate(0, 10, Answer("one", "stop", 7, 3), reward=1.0),
        Candidate(1, 11, Answer("two", "length", 7, 4), reward=2.5),
        Candidate(2, 12, Answer("three", "stop", 7, 6), unusable=Unusable.NOT_JSON),
        Candidate(3, 13, cut_at_tokens=5),
    ]
    plan = Plan(
        n_asked=8,
        n_ordinary=4,
        seed=1,
        arm=Arm("canary", "rft-1", 4),
        policy_version=3,
        exploration=True,
        n_returned=n_returned,
        arm_failed="holdback",
    )
    winners = [candidates[1], candidates[0]]
    return Outcome(plan, 4, candidates, winners, Selection.SCORED, TIMINGS, True, "RewardError", "judge")


def test_a_whole_answer_has_every_field_under_its_name() -> None:
    assert {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 9,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "two", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            },
            {
                "index": 1,
                "message": {"role": "assistant", "content": "one", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            },
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14},
        "best_of_n": {
            "n": 4,
            "n_asked": 8,
            "scored": 2,
            "selection": "scored",
            "rewards": [1.0, 2.5, None, None],
            "scoring_error": "RewardError",
            "unusable": [None, None, "not_json", None],
            "winners": [1, 0],
            "shortfall": None,
            "generated_tokens": 18,
            "policy": 3,
            "adapter": "rft-1",
            "arm": "canary",
            "arm_failed": "holdback",
            "reward_model": "judge",
            "exploration": True,
            "deadline_hit": True,
            "timings": {
                "queue_ms": 1.0,
                "generate_ms": 20.0,
                "score_ms": 3.001,
                "journal_ms": 0.5,
                "overhead_ms": 5.749,
                "total_ms": 30.25,
            },
        },
    } == render.completion(outcome(), completion_id="chatcmpl-1", created=9, model="m")


def test_the_headers_have_the_same_facts() -> None:
    assert {
        "x-bon-n": "4",
        "x-bon-n-asked": "8",
        "x-bon-scored": "2",
        "x-bon-selection": "scored",
        "x-bon-generated-tokens": "18",
        "x-bon-policy": "3",
        "x-bon-arm": "canary",
        "x-bon-total-ms": "30.250",
        "x-bon-overhead-ms": "5.749",
        "x-bon-reward-model": "judge",
        "x-bon-reward": "2.5",
    } == render.headers(outcome())


@pytest.mark.parametrize(("n_returned", "missing"), [(1, False), (2, False), (3, True)])
def test_a_shortfall_is_reported_only_if_an_answer_is_missing(n_returned: int, missing: bool) -> None:
    words = "2 of 3 answers: of 4 candidates the others are no use (1 failed, 1 not_json)"
    short = outcome(n_returned=n_returned)
    assert (words if missing else None) == render.shortfall(short)
    assert (words if missing else None) == render.report(short)["shortfall"]
    assert (words if missing else None) == render.headers(short).get("x-bon-shortfall")


def test_a_usable_answer_that_is_not_returned_is_counted_as_one() -> None:
    short = outcome(n_returned=3)
    short.winners.pop()
    assert render.shortfall(short) == (
        "1 of 3 answers: of 4 candidates the others are no use (1 failed, 1 not_json, 1 usable)"
    )


@pytest.mark.parametrize(
    ("name", "sent"), [("org/a-b_c.d:1@x+y=z,~ w", "org/a-b_c.d:1@x+y=z,~ w"), ("a;b", "a%3Bb"), ("ä", "%C3%A4")]
)
def test_a_reward_models_name_is_quoted_where_a_header_needs_it(name: str, sent: str) -> None:
    one = outcome()
    one.reward_model = name
    assert sent == render.headers(one)["x-bon-reward-model"]


@pytest.mark.parametrize(("reward", "sent"), [(None, None), (0.0, "0"), (-1.2345678, "-1.23457"), (1e9, "1e+09")])
def test_the_winners_reward_has_six_digits(reward: float | None, sent: str | None) -> None:
    one = outcome()
    one.winners[0].reward = reward
    assert sent == render.headers(one).get("x-bon-reward")


@pytest.mark.parametrize(("text", "calls", "content"), [(None, (), ""), ("", (), ""), ("a", ({"id": "1"},), "a")])
def test_content_is_text_unless_a_tool_is_called(text: str | None, calls: tuple[Any, ...], content: str) -> None:
    made = render.choice(3, Answer(text, "stop", 1, 1, tool_calls=calls, logprobs={"content": []}))
    assert (3, content, {"content": []}) == (made["index"], made["message"]["content"], made["logprobs"])
