"""The guard's statistics: counted and excluded records, and error rates."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest

from distill.dataset.split import conversation_key
from distill.evaluation import eprocess
from distill.promotion.guard import FAILED, Evidence, GuardVerdict, Phase, Reading, decide, phase_of, read_record
from distill.settings import PromotionSettings
from gateway.policy import Canary, Policy
from gateway.types import Arm, Selection
from tests.distill.promotion.traffic import CANARY, NEW, OLD, record

SETTINGS = PromotionSettings(canary_requests=50, watch_requests=80)
PROMOTED = Phase("night-1", 3, replace(NEW, name="stable"), replace(OLD, name="holdback"))


def reading(
    rewards: list[float | None], arm: Arm = OLD, phase: Phase = CANARY, **fields: Any
) -> tuple[str, float] | str:
    found = read_record(record(rewards, arm, **fields), phase)
    return found if isinstance(found, str) else (found.role, found.value)


def test_a_race_counts_by_its_winner_and_a_single_draw_by_itself() -> None:
    assert ("old", 4.0) == reading([1.0, 4.0, 2.0, 3.0])
    assert ("new", 2.5) == reading([2.5], NEW)


def test_an_exploring_race_counts_by_the_expected_best_of_its_policys_n() -> None:
    """All candidates are used, which lowers the noise at no cost."""
    assert ("new", 2.5) == reading([1.0, 2.0, 3.0, 4.0], NEW, exploration=True)
    assert ("old", 4.0) == reading([1.0, 2.0, 3.0, 4.0], OLD, exploration=True)
    best_of_four = 0.8 * 5 + 0.2 * 4
    assert best_of_four == pytest.approx(reading([1.0, 2.0, 3.0, 4.0, 5.0], OLD, exploration=True)[1])


def test_after_the_promotion_the_arms_are_exchanged() -> None:
    assert ("new", 2.5) == reading([2.5], PROMOTED.new, PROMOTED)
    assert ("old", 4.0) == reading([4.0, 1.0, 1.0, 1.0], PROMOTED.old, PROMOTED)


def test_a_failure_of_the_new_policy_counts_as_worse_than_every_reward() -> None:
    """The stable policy answered in its place; a failure of the holdback is no evidence about the new one."""
    assert ("new", FAILED) == reading([1.0, 2.0, 3.0, 4.0], OLD, arm_failed="canary")
    failed = record([1.0], PROMOTED.new, arm_failed="holdback")
    assert "the old policy could not answer" == read_record(failed, PROMOTED)


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("another policy", {"policy_version": 2}),
        ("another policy", {"arm_failed": "holdback"}),
        ("another policy", {"arm": replace(OLD, adapter="rft-0")}),
        ("another policy", {"n_ordinary": 5}),
        ("not stored", {"store": False}),
        ("N not the policy's", {"n_from_caller": True}),
        ("N not the policy's", {"n_returned": 2}),
        ("N not the policy's", {"temperature": 0.0}),
        ("shrunk by load", {"n_asked": 5}),
        ("cut", {"deadline_hit": True}),
        ("no rewards", {"selection": Selection.FALLBACK}),
    ],
)
def test_an_excluded_record_is_counted_with_its_reason(reason: str, fields: dict[str, Any]) -> None:
    assert reason == reading([1.0, 2.0, 3.0, 4.0], **fields)


def test_without_rewards_there_is_nothing_to_compare() -> None:
    assert "no rewards" == reading([None], NEW)
    assert "no rewards" == reading([1.0, 2.0, None, None], exploration=True)


def test_answers_are_paired_in_the_order_of_their_arrival() -> None:
    evidence = Evidence()
    for rewards, arm in [([1.0] * 4, OLD), ([2.0] * 4, OLD), ([8.0], NEW), ([9.0], NEW), ([7.0], NEW)]:
        evidence.add(record(rewards, arm), CANARY)
    assert ([8.0, 9.0], [1.0, 2.0]) == (evidence.new, evidence.old)
    assert {"new": [7.0], "old": []} == evidence.waiting


def test_a_record_delivered_twice_and_a_conversation_that_goes_on_count_once() -> None:
    evidence = Evidence()
    again = record([1.0] * 4, question="hello")
    for one in (again, again, record([3.0] * 4, question="hello"), record([3.0] * 4, question=" HELLO ")):
        evidence.add(one, CANARY)
    assert ([1.0], 3) == (evidence.waiting["old"], evidence.excluded["conversation counted already"])


def test_few_answers_of_the_larger_arm_wait_for_a_partner() -> None:
    evidence = Evidence()
    for _ in range(100):
        evidence.add(record([1.0] * 4), CANARY)
    assert (8, 92) == (len(evidence.waiting["old"]), evidence.excluded["no partner"])


def test_another_reward_model_is_another_scale() -> None:
    evidence = Evidence()
    evidence.add(record([1.0] * 4), CANARY)
    evidence.add(record([100.0] * 4, reward_model="newer"), CANARY)
    assert ([1.0], 1) == (evidence.waiting["old"], evidence.excluded["another reward model"])


@pytest.mark.parametrize(("strangers", "decision"), [(19, "wait"), (20, "roll back"), (21, "roll back")])
def test_a_lasting_change_of_the_reward_model_ends_the_trial(strangers: int, decision: str) -> None:
    """No further evidence is possible; the reason names both models, and is saved with the evidence."""
    evidence = Evidence()
    for one in [record([1.0] * 4), *(record([9.0] * 4, reward_model="newer") for _ in range(strangers))]:
        evidence.add(one, CANARY)
    evidence = Evidence.from_json(orjson.loads(orjson.dumps(evidence.to_json())))
    verdict = decide(evidence, CANARY, SETTINGS)
    assert decision == verdict.decision
    words = "the reward model was judge and is newer now, so later rewards cannot be compared with the first 0 pairs"
    assert (words == verdict.describe()) == (decision == "roll back")


def test_alternating_reward_models_do_not_end_the_trial() -> None:
    """Gateways are restarted one after another; rewards of the first model in between are still evidence."""
    evidence = Evidence()
    for _ in range(3):
        evidence.add(record([1.0] * 4), CANARY)
        for _ in range(19):
            evidence.add(record([9.0] * 4, reward_model="newer"), CANARY)
    assert "wait" == decide(evidence, CANARY, SETTINGS).decision


def test_evidence_of_releases_without_these_fields_is_read() -> None:
    old = {name: value for name, value in Evidence().to_json().items() if name not in ("strangers", "reward_change")}
    assert Evidence() == Evidence.from_json(old)


def test_differences_are_of_ranks_among_the_old_policys_earlier_rewards() -> None:
    """So neither scale nor outliers matter, and later rewards do not affect earlier differences."""
    evidence = Evidence(new=[5.0, 9.0, 2.0, None], old=[2.0, 1.0, 3.0, 2.0])
    assert [0.0, 1.0, -0.25, -0.5] == evidence.differences().tolist()
    scaled = Evidence(new=[50.0, 9e9, 20.0, None], old=[20.0, 10.0, 30.0, 20.0])
    assert evidence.differences().tolist() == scaled.differences().tolist()


def test_evidence_is_read_as_written() -> None:
    evidence = Evidence()
    for rewards, arm, fields in [([1.0] * 4, OLD, {}), ([8.0], NEW, {}), ([1.0] * 4, OLD, {"arm_failed": "canary"})]:
        evidence.add(record(rewards, arm, **fields), CANARY)  # type: ignore[arg-type]
    evidence.add(record([1.0] * 4, store=False), CANARY)
    assert evidence == Evidence.from_json(orjson.loads(orjson.dumps(evidence.to_json())))


def drawn(shift: float, pairs: int, seed: int, failing: float = 0.0) -> Evidence:
    """Pairs of rewards, the new policy's shifted by so many standard deviations."""
    rng = np.random.default_rng(seed)
    failed = rng.random(pairs) < failing
    new = [None if fails else value for value, fails in zip(rng.normal(shift, 1, pairs).tolist(), failed, strict=True)]
    return Evidence(new=new, old=rng.normal(0, 1, pairs).tolist())


def decisions(shift: float, pairs: int, phase: Phase = CANARY, **fields: float) -> list[str]:
    return [decide(drawn(shift, pairs, seed, **fields), phase, SETTINGS).decision for seed in range(60)]


def test_before_there_is_evidence_it_waits() -> None:
    assert "wait" == decide(Evidence(), CANARY, SETTINGS).decision
    assert {"wait"} == set(decisions(0.5, 49))


def test_a_policy_as_good_as_the_old_one_is_promoted() -> None:
    """Nearly always by 300 pairs; none is rolled back."""
    found = decisions(0.0, 300)
    assert found.count("promote") > 50
    assert "roll back" not in found


def test_a_much_worse_one_is_rolled_back() -> None:
    """One standard deviation lower: nearly always within 150 pairs, and never promoted."""
    found = decisions(-1.0, 150)
    assert found.count("roll back") > 55
    assert "promote" not in found


def test_one_at_the_margin_is_neither_promoted_nor_rolled_back_more_often_than_promised() -> None:
    """The chance that a new answer beats an old one is .4 at a shift of .358 standard deviations."""
    found = decisions(-0.358, 400)
    assert found.count("promote") <= 6
    assert found.count("roll back") <= 6


def test_one_that_often_cannot_answer_is_rolled_back() -> None:
    assert decisions(0.0, 150, failing=0.7).count("roll back") > 50


def test_after_the_promotion_it_watches_to_the_end_or_rolls_back() -> None:
    assert {"wait"} == set(decisions(0.2, 79, PROMOTED))
    assert {"end the watch"} == set(decisions(0.2, 80, PROMOTED))
    assert decisions(-1.0, 150, PROMOTED).count("roll back") > 55


def test_the_verdict_is_described_in_numbers() -> None:
    words = decide(drawn(-1.0, 100, 0), CANARY, SETTINGS).describe()
    assert all(part in words for part in ("100 pairs", "mean difference -0.", "of 1"))


def test_a_phase_begins_with_the_first_version_that_compares_these_two() -> None:
    base = Policy(version=1, n=4, n_max=8)
    started = base.successor(reason="", canary={"adapter": "rft-1", "n": 1, "share": 0.1, "trial": "night-1"})
    wider = started.successor(reason="", exploration=0.1)
    assert Phase("night-1", 2, Arm("canary", "rft-1", 1), Arm("stable", None, 4)) == phase_of([wider, started, base])
    other_n = wider.successor(reason="", n=3)
    assert 4 == getattr(phase_of([other_n, wider, started, base]), "version", None)
    other_trial = started.successor(reason="", canary={"adapter": "rft-1", "n": 1, "share": 0.1, "trial": "night-2"})
    assert 3 == getattr(phase_of([other_trial, started, base]), "version", None)
    assert phase_of([base]) is None


def test_in_the_holdback_phase_the_stable_policy_is_the_new_one() -> None:
    policy = Policy(version=9, adapter="rft-1", n=1, n_max=8, canary=Canary(n=4, share=0.1, holdback=True))
    phase = phase_of([policy])
    assert phase is not None
    assert (True, "rft-1", None) == (phase.promoted, phase.new.adapter, phase.old.adapter)


def test_a_reading_does_not_name_the_caller() -> None:
    found = read_record(record([2.5], NEW), CANARY)
    assert isinstance(found, Reading)
    assert 16 == len(found.conversation)


def test_the_evidence_is_that_of_two_e_processes_in_units_of_what_is_needed() -> None:
    """One against "worse by the margin", one against "not worse by it", on observations scaled to [-1, 1]."""
    settings = PromotionSettings(guard_margin=0.25, guard_alpha=0.1)
    evidence = drawn(0.2, 60, 5)
    above = (evidence.differences() + 0.25) / 1.25
    verdict = decide(evidence, CANARY, settings)
    processes = [eprocess.run(x, alpha=0.1, strategy="mixture") for x in (above, -above)]
    assert [pytest.approx(0.1 * each.highest) for each in processes] == [verdict.better, verdict.worse]
    assert pytest.approx(evidence.differences().mean()) == verdict.mean_difference
    assert 60 == verdict.pairs


def test_without_a_pair_there_is_no_evidence() -> None:
    assert decide(Evidence(), CANARY, SETTINGS) == GuardVerdict("wait", 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(("pairs", "decision"), [(49, "wait"), (50, "promote"), (51, "promote")])
def test_a_promotion_needs_its_number_of_pairs(pairs: int, decision: str) -> None:
    """Even if the evidence is clear before."""
    assert decision == decide(drawn(3.0, pairs, 0), CANARY, SETTINGS).decision


@pytest.mark.parametrize(
    ("before", "value", "place"),
    [
        ([], 5.0, 0.5),
        ([], None, 0.0),
        ([1.0, 2.0], None, 0.0),
        ([1.0, 2.0], 0.5, 0.0),
        ([1.0, 2.0], 1.0, 0.25),
        ([1.0, 2.0], 1.5, 0.5),
        ([1.0, 2.0], 2.0, 0.75),
        ([1.0, 2.0], 2.5, 1.0),
        ([1.0, 1.0, 1.0, 2.0], 1.0, 0.375),
    ],
)
def test_a_rank_is_the_mid_rank_among_earlier_values(
    before: list[float | None], value: float | None, place: float
) -> None:
    evidence = Evidence(new=[*before, value], old=[*before, value])
    other = Evidence(new=[*before, None], old=[*before, value])
    assert 0.0 == evidence.differences()[-1]
    assert -place == other.differences()[-1]


def test_the_verdict_names_pairs_difference_and_both_evidences() -> None:
    words = GuardVerdict("wait", 12, -0.1234, 0.256, 0.5).describe()
    assert (
        "12 pairs of live answers, mean difference -0.123 in ranks; evidence that the new policy is good enough 0.26 "
        "of 1, that it is not 0.5 of 1"
    ) == words


def test_a_change_of_the_reward_model_decides_whatever_the_evidence() -> None:
    evidence = replace(drawn(3.0, 60, 0), reward_change="changed")
    assert GuardVerdict("roll back", 60, 0.0, 0.0, 0.0, "changed") == decide(evidence, CANARY, SETTINGS)


def test_one_pair_is_evidence() -> None:
    verdict = decide(Evidence(new=[1.0], old=[1.0]), CANARY, SETTINGS)
    assert ("wait", 1, 0.0) == (verdict.decision, verdict.pairs, verdict.mean_difference)
    assert 0 < verdict.worse < verdict.better < 1


@pytest.mark.parametrize(("version", "counts"), [(2, False), (3, True), (4, True)])
def test_records_count_from_the_phases_first_version_on(version: int, counts: bool) -> None:
    assert counts == (("old", 4.0) == reading([1.0, 4.0, 2.0, 3.0], policy_version=version))


def test_a_failed_request_counts_whatever_answered_it() -> None:
    """The answer is the stable policy's: nothing about it matters. A conversation that is not stored never counts."""
    assert ("new", FAILED) == reading([None], OLD, arm_failed="canary", n_asked=9, n_ordinary=7)
    assert "not stored" == reading([1.0], OLD, arm_failed="canary", store=False)
    assert "N not the policy's" == reading([1.0], OLD, arm_failed="canary", n_from_caller=True)


def test_some_rewards_of_a_race_are_enough() -> None:
    assert ("old", 2.0) == reading([1.0, None, 2.0, None])


def test_a_conversation_is_a_hash_of_caller_user_and_question() -> None:
    one = record([1.0] * 4, question="hello")
    assert one.messages is not None
    names = ["key", "user", conversation_key(one.messages)]
    for changes in ({"key_id": "key", "user": "user"}, {"key_id": None, "user": None}):
        found = read_record(replace(one, **changes), CANARY)
        text = "\0".join([changes["key_id"] or "", changes["user"] or "", names[2]])
        assert isinstance(found, Reading)
        assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == found.conversation
