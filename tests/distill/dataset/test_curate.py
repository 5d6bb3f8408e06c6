"""Examples, held-out prompts, and one reason for each excluded record."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from distill.dataset.curate import Curated, Reason
from distill.dataset.curate import curate as curate_records
from distill.dataset.example import Example, HeldOutPrompt, ScoredAnswer
from distill.dataset.files import content_hash
from distill.dataset.split import conversation_key, is_held_out
from distill.settings import DatasetSettings
from gateway.journal.record import CompletionRecord, FeedbackRecord
from gateway.types import Sampling, Selection
from tests.distill.dataset.records import NOON, candidate, race, rated, user

SHARE = 0.2
SETTINGS = DatasetSettings(held_out_share=SHARE)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def curate(records: Sequence[CompletionRecord], feedback: Sequence[FeedbackRecord] = (), **changes: Any) -> Curated:
    curated = curate_records(records, feedback, SETTINGS.model_copy(update=changes))
    assert len(records) == curated.total
    assert curated.total == len(curated.examples) + len(curated.held_out) + sum(curated.excluded.values())
    return curated


def reasons(curated: Curated) -> dict[Reason, int]:
    return {reason: count for reason, count in curated.excluded.items() if count}


def prompts(held_out: bool, count: int) -> list[str]:
    """Different prompts that all train, or all measure."""
    texts = (f"question {n}" for n in range(10_000))
    return [text for text in texts if held_out == is_held_out(conversation_key(user(text)), SHARE)][:count]


TRAINS = prompts(False, 9)
MEASURES = prompts(True, 9)


def test_an_example_has_the_winner_and_the_answers_it_beat() -> None:
    drawn = [
        candidate(0, 0.0),
        candidate(1, 2.0, text="best", tokens=9),
        candidate(2, -2.0),
        candidate(3, None, error="BackendFailed", text=None, finish_reason=None),
    ]
    (found,) = curate([race(prompt=TRAINS[0], candidates=drawn)]).examples
    losers = (ScoredAnswer("answer 2", -2.0, 3), ScoredAnswer("answer 0", 0.0, 3))
    key = conversation_key(user(TRAINS[0]))
    expected = Example(
        key,
        "chatcmpl-1",
        found.time_ms,
        user(TRAINS[0]),
        ScoredAnswer("best", 2.0, 9),
        losers,
        1.5**0.5,
        "rft-1",
        "judge",
    )
    assert expected == replace(found, margin_sd=1.5**0.5)
    assert pytest.approx(1.5**0.5) == found.margin_sd


def test_the_winner_is_the_journals_first_at_any_place_in_the_list() -> None:
    drawn = [candidate(5, 1.0), candidate(2, 0.5), candidate(9, 1.0)]
    (found,) = curate([race(prompt=TRAINS[0], candidates=drawn, winners=[9, 5])]).examples
    assert "answer 9" == found.winner.text
    assert ["answer 2", "answer 5"] == [loser.text for loser in found.losers]


@pytest.mark.parametrize(("wanted", "trained"), [("all", {"old": 2, "new": 1}), ("newest", {"new": 1})])
def test_winners_of_an_earlier_reward_model_train_if_the_setting_allows_it(
    wanted: Literal["all", "newest"], trained: dict[str, int]
) -> None:
    """The newest winner's model decides. An excluded record does not displace a newer model's winner of its prompt."""
    models = ["old", "old", "old", "new"]
    records = [
        race(f"chatcmpl-{n}", prompt=TRAINS[n % 3], reward_model=model, time_ms=NOON + n)
        for n, model in enumerate(models)
    ]
    found = curate(records, reward_models=wanted)
    assert trained == found.reward_models
    assert ["new"] == list(found.reward_models)[-1:]
    assert {"all": {Reason.PROMPT_CAP: 1}, "newest": {Reason.EARLIER_REWARD_MODEL: 3}}[wanted] == reasons(found)


def test_losers_are_distinct_and_differ_from_the_winner() -> None:
    texts = ["best", "same", "same", "best", " ", "worst"]
    rewards = [3.0, 0.5, 1.0, 2.0, 0.1, -1.0]
    drawn = [candidate(n, reward, text=text) for n, (text, reward) in enumerate(zip(texts, rewards, strict=True))]
    (found,) = curate([race(prompt=TRAINS[0], candidates=drawn)]).examples
    assert [("worst", -1.0), ("same", 1.0)] == [(loser.text, loser.reward) for loser in found.losers]


def tool_race() -> CompletionRecord:
    return race(candidates=[candidate(0, 1.0, text=None, tool_calls=[CALL], n_tool_calls=1), candidate(1, 0.0)])


@pytest.mark.parametrize(
    ("reason", "record"),
    [
        (Reason.NOT_STORED, race(store=False, messages=None)),
        (Reason.NOT_STORED, race(store=False)),
        (Reason.TOOLS, tool_race()),
        (Reason.TOOLS, race(sampling=Sampling(tools=({"type": "function"},)))),
        (Reason.TOOLS, race(messages=[*user("x"), {"role": "tool", "content": "4", "tool_call_id": "c"}])),
        (Reason.TOOLS, race(messages=[*user("x"), {"role": "assistant", "content": None, "tool_calls": [CALL]}])),
        (Reason.CONSTRAINED, race(sampling=Sampling(response_format={"type": "json_object"}))),
        (Reason.CONSTRAINED, race(sampling=Sampling(logit_bias={"5": 1.0}))),
        (Reason.NO_USER_TEXT, race(messages=[{"role": "system", "content": "be brief"}])),
        (Reason.NO_USER_TEXT, race(prompt="  ")),
        (Reason.SINGLE, race(rewards=[1.0], selection=Selection.SINGLE)),
        (Reason.SINGLE, race(rewards=[None], selection=Selection.SINGLE, winners=[], ending="cut")),
        (Reason.FALLBACK, race(rewards=[None, None], selection=Selection.FALLBACK)),
        (Reason.FALLBACK, race(rewards=[1.0, None, 2.0], winners=[1])),
        (Reason.FALLBACK, race(winners=[])),
        (Reason.FALLBACK, race(winners=[77])),
        (Reason.FEW_DRAWS, race(n_run=1)),
        (Reason.FEW_SCORES, race(rewards=[1.0, None, None])),
        (Reason.PROMPT_TRUNCATED, race(candidates=[candidate(0, 1.0), candidate(1, 0.0, prompt_truncated=True)])),
        (Reason.NO_SPREAD, race(rewards=[0.1, 0.1, 0.1])),
        (Reason.NO_SPREAD, race(rewards=[1e308, -1e308])),
        (Reason.TRUNCATED, race(candidates=[candidate(0, 1.0, finish_reason="length"), candidate(1, 0.0)])),
        (Reason.TRUNCATED, race(candidates=[candidate(0, 1.0, cut_at_tokens=9), candidate(1, 0.0)])),
        (Reason.EMPTY, race(candidates=[candidate(0, 1.0, text=" \n"), candidate(1, 0.0)])),
        (Reason.EMPTY, race(candidates=[candidate(0, 1.0, text=None), candidate(1, 0.0)])),
        (Reason.MARGIN, race(rewards=[1.0, 5.0], winners=[0])),
    ],
)
def test_each_reason_excludes_its_record(reason: Reason, record: CompletionRecord) -> None:
    curated = curate([record], held_out_share=1e-9)
    assert {reason: 1} == reasons(curated)
    assert [] == curated.examples


def test_a_plain_text_format_is_fine() -> None:
    record = race(prompt=TRAINS[0], sampling=Sampling(response_format={"type": "text"}))
    assert 1 == len(curate([record]).examples)


@pytest.mark.parametrize(
    "changes", [{"finish_reason": "length"}, {"finish_reason": "content_filter"}, {"unusable": "not_json"}]
)
def test_an_answer_that_breaks_the_contract_is_neither_winner_nor_loser(changes: dict[str, Any]) -> None:
    """Nor does its reward change the race's mean."""
    drawn = [candidate(0, 2.0), candidate(1, 0.0), candidate(2, 1.0, **changes), candidate(3, 9.0, **changes)]
    record = race(prompt=TRAINS[0], candidates=drawn, winners=[0])
    [found] = curate([record]).examples
    assert (2.0, [0.0], 1.0) == (found.winner.reward, [loser.reward for loser in found.losers], found.margin_sd)
    [lost] = [reason for reason, count in curate([replace(record, winners=[3])]).excluded.items() if count]
    assert (Reason.TRUNCATED if changes.get("finish_reason") == "length" else Reason.UNUSABLE) == lost


def test_negative_feedback_keeps_an_answer_out_and_other_feedback_does_not() -> None:
    """One negative rating outweighs positive ones."""
    records = [race(f"r{n}", prompt=prompt) for n, prompt in enumerate(TRAINS[:3])]
    feedback = [rated("r0", -0.5), rated("r0", 1.0), rated("r1", 0.0), rated("unknown", -1.0)]
    curated = curate(records, feedback)
    assert {"r1", "r2"} == {found.record_id for found in curated.examples}
    assert {Reason.NEGATIVE_FEEDBACK: 1} == reasons(curated)


def test_the_margin_is_in_standard_deviations_of_the_race() -> None:
    """Of eight candidates one at 7 and seven at 0: (7 − 7/8) over the population's deviation is √7."""
    record = race(prompt=TRAINS[0], rewards=[7.0, *[0.0] * 7])
    assert 1 == len(curate([record], min_margin_sd=2.64).examples)
    assert {Reason.MARGIN: 1} == reasons(curate([record], min_margin_sd=2.65))


def test_a_reason_earlier_in_the_list_wins() -> None:
    record = tool_race()
    bad = replace(record, store=False, n_run=1, selection=Selection.FALLBACK)
    assert {Reason.NOT_STORED: 1} == reasons(curate([bad], [rated(bad.id, -1.0)]))
    assert list(Reason) == list(curate([]).excluded)


def test_the_newest_winners_of_a_prompt_stay() -> None:
    records = [race(f"r{n}", prompt=TRAINS[0], time_ms=1000 + n) for n in range(5)]
    curated = curate(records, max_per_prompt=2)
    assert ["r3", "r4"] == [found.record_id for found in curated.examples]
    assert {Reason.PROMPT_CAP: 3} == reasons(curated)


LONG = "please explain to me in simple words how the moon makes the tides rise and fall twice a day at the sea"


@pytest.mark.parametrize(("cap", "kept"), [(1, [3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3])])
def test_the_newest_winners_train_up_to_the_cap(cap: int, kept: list[int]) -> None:
    records = [race(f"c-{n}", prompt=TRAINS[n], time_ms=NOON + n) for n in range(4)]
    for ordered in (records, records[::-1]):
        curated = curate(ordered, max_examples=cap)
        assert [f"c-{n}" for n in kept] == [example.record_id for example in curated.examples]
        left_out = {Reason.TRAINING_CAP: 4 - len(kept)} if len(kept) < 4 else {}
        assert left_out == reasons(curated)


def test_a_winner_whose_reasoning_was_dropped_does_not_train() -> None:
    drawn = [candidate(0, 0.0), candidate(1, 2.0, reasoned=True)]
    assert {Reason.REASONED: 1} == reasons(curate([race(prompt=TRAINS[0], candidates=drawn)]))
    drawn = [candidate(0, 0.0, reasoned=True), candidate(1, 2.0)]
    assert 1 == len(curate([race(prompt=TRAINS[0], candidates=drawn)]).examples)


def test_winners_of_an_adapter_that_was_rolled_back_do_not_train_but_their_prompts_measure() -> None:
    records = [
        race("c-0", prompt=TRAINS[0], adapter="rft-bad"),
        race("c-1", prompt=TRAINS[1], adapter="rft-good"),
        race("c-2", prompt=TRAINS[2], adapter=None),
        race("c-3", prompt=MEASURES[0], adapter="rft-bad"),
    ]
    curated = curate_records(records, [], SETTINGS, rolled_back={"rft-bad"})
    assert ["c-1", "c-2"] == [example.record_id for example in curated.examples]
    assert (1, {Reason.ROLLED_BACK: 1}) == (len(curated.held_out), reasons(curated))


def near(held_out: bool, count: int) -> list[str]:
    """Different prompts that are nearly the same, all on one side of the split."""
    texts = (f"{LONG} {LONG.replace('the', 'a')} and number {n}" for n in range(1000))
    return [text for text in texts if held_out == is_held_out(conversation_key(user(text)), SHARE)][:count]


def test_the_newest_of_near_duplicates_trains() -> None:
    records = [race(f"r{n}", prompt=prompt, time_ms=1000 + n) for n, prompt in enumerate(near(False, 4))]
    curated = curate(records)
    assert ["r3"] == [found.record_id for found in curated.examples]
    assert {Reason.NEAR_DUPLICATE: 3} == reasons(curated)


def test_near_duplicates_of_held_out_prompts_do_not_train() -> None:
    """Even if it is newer, and even if the held-out race itself was excluded."""
    measured = race("old", prompt=near(True, 1)[0], rewards=[1.0], selection=Selection.SINGLE, time_ms=1)
    curated = curate([race("new", prompt=near(False, 1)[0], time_ms=2), measured])
    assert [] == curated.examples
    assert {Reason.NEAR_HELD_OUT: 1} == reasons(curated)


def test_the_oldest_of_near_duplicate_held_out_prompts_is_kept() -> None:
    """So that samples of earlier nights can be reused."""
    grown = [*user(MEASURES[0]), {"role": "assistant", "content": "so"}, *user("go on")]
    records = [
        race("later", messages=grown, time_ms=2000),
        race("first", prompt=MEASURES[0], time_ms=1000),
        *(race(f"near{n}", prompt=prompt, time_ms=n) for n, prompt in enumerate(near(True, 3))),
    ]
    curated = curate(records)
    expected = [user(MEASURES[0]), user(near(True, 1)[0])]
    assert sorted((HeldOutPrompt(conversation_key(m), m) for m in expected), key=lambda p: p.key) == curated.held_out
    assert {Reason.HELD_OUT_REPEAT: 3} == reasons(curated)


def test_a_repeated_record_is_counted_as_repeated() -> None:
    curated = curate([race(prompt=TRAINS[0]), race(prompt=TRAINS[0])])
    assert 1 == len(curated.examples)
    assert {Reason.REPEATED: 1} == reasons(curated)


def test_progress_is_reported_once_a_record() -> None:
    calls: list[None] = []
    ratings = [rated("a", 1.0), rated("b", -1.0), rated("unknown", -1.0)]
    curate_records([race(), race("b")], ratings, SETTINGS, on_record=lambda: calls.append(None))
    assert 5 == len(calls)


REWARDS = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.0]), st.floats(allow_nan=False, allow_infinity=False))


@st.composite
def anything(draw: st.DrawFn) -> CompletionRecord:
    """A record with any combination of faults, of one of a few prompts."""
    drawn = [
        candidate(
            index,
            draw(REWARDS),
            text=draw(st.sampled_from([None, "", "yes", "no", "maybe"])),
            finish_reason=draw(st.sampled_from(["stop", "stop", "length"])),
            prompt_truncated=draw(st.sampled_from([False] * 9 + [True])),
        )
        for index in range(draw(st.integers(1, 4)))
    ]
    prompt = draw(st.sampled_from([*TRAINS[:3], *MEASURES[:3], *near(True, 2), *near(False, 3), ""]))
    return race(
        f"r{draw(st.integers(0, 10**9))}",
        prompt=prompt,
        candidates=drawn,
        time_ms=draw(st.integers(0, 50)),
        store=draw(st.sampled_from([True] * 9 + [False])),
        selection=draw(st.sampled_from([Selection.SCORED] * 4 + [Selection.FALLBACK, Selection.SINGLE])),
        winners=draw(st.lists(st.integers(0, 4), max_size=2)) if draw(st.booleans()) else [0],
        n_run=len(drawn),
    )


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    st.lists(anything(), max_size=12, unique_by=lambda record: record.id),
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from([-1.0, 0.0, 1.0])), max_size=3),
    st.integers(0, 3),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_counts_add_up_for_any_records_in_any_order(
    records: list[CompletionRecord],
    ratings: list[tuple[int, float]],
    repeats: int,
    cap: int,
    chance: random.Random,
) -> None:
    """No example shares its key with a held-out prompt, and each winner has the highest reward."""
    feedback = [rated(records[n].id, rating) for n, rating in ratings if n < len(records)]
    everything = [*records, *records[:repeats]]
    curated = curate(everything, feedback, max_per_prompt=cap)
    shuffled = curate(chance.sample(everything, len(everything)), feedback[::-1], max_per_prompt=cap)
    assert curated == shuffled
    assert content_hash(curated.examples, curated.held_out) == content_hash(shuffled.examples, shuffled.held_out)

    assert set() == {found.key for found in curated.examples} & {prompt.key for prompt in curated.held_out}
    assert all(is_held_out(prompt.key, SHARE) for prompt in curated.held_out)
    for found in curated.examples:
        assert not is_held_out(found.key, SHARE)
        assert found.margin_sd >= 0
        rewards = [loser.reward for loser in found.losers]
        assert sorted(rewards) == rewards
        texts = [loser.text for loser in found.losers]
        assert len(texts) == len({*texts} - {found.winner.text, ""})
