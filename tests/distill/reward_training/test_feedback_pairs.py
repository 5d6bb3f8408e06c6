"""Callers' ratings as pairs: liked against disliked answers, else within the race."""

from __future__ import annotations

from distill.reward_training.feedback_pairs import SOURCE, feedback_pairs
from gateway.journal.record import CandidateRecord, CompletionRecord, FeedbackRecord, Usage
from gateway.types import Sampling, Selection, Timings


def completion(id: str, texts: list[str], *, question: str = "Why?", store: bool = True) -> CompletionRecord:
    """A race whose first candidate won; the others have descending rewards."""
    return CompletionRecord(
        id=id, time_ms=0, key_id=None, model="m", store=store, n_messages=1,
        messages=[{"role": "user", "content": question}] if store else None, sampling=Sampling(), user=None,
        metadata=None, policy_version=1, adapter=None, reward_model="r", n_asked=len(texts), n_ordinary=len(texts),
        n_run=len(texts), n_returned=1, seed=0,
        candidates=[CandidateRecord(place, place, text, reward=-place) for place, text in enumerate(texts)],
        winners=[0], selection=Selection.SCORED, exploration=False, exploration_probability=0.0, deadline_hit=False,
        scoring_error=None, usage=Usage(1, 1, 1), timings=Timings(),
    )  # fmt: skip


def rated(completion_id: str, rating: float) -> FeedbackRecord:
    """One caller's rating."""
    return FeedbackRecord(f"feedback-{completion_id}-{rating}", completion_id, rating, None, 0, None)


def texts_of_pairs(completions: list[CompletionRecord], feedback: list[FeedbackRecord]) -> list[tuple[str, str]]:
    pairs = feedback_pairs(completions, feedback)
    assert all(pair.source == SOURCE and pair.prompt == (("user", "Why?"),) for pair in pairs)
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_a_liked_answer_is_paired_above_a_disliked_one_of_the_same_conversation() -> None:
    """Both were rated by people: the race's other candidates are not needed."""
    races = [completion("a", ["good", "x", "y"]), completion("b", ["bad", "z"])]
    assert [("good", "bad")] == texts_of_pairs(races, [rated("a", 1), rated("b", -1)])


def test_a_single_rating_is_paired_within_its_race() -> None:
    """Liked above the worst candidate, disliked below the runner-up."""
    race = completion("a", ["first", "second", "third"])
    assert [("first", "third")] == texts_of_pairs([race], [rated("a", 1)])
    assert [("second", "first")] == texts_of_pairs([race], [rated("a", -1)])


def test_ratings_that_cancel_and_races_without_ratings_are_ignored() -> None:
    """So are records without content, and answers without another candidate."""
    races = [completion("a", ["1", "2"]), completion("b", ["3", "4"]), completion("c", ["5", "6"], store=False)]
    assert [] == texts_of_pairs(races, [rated("a", 1), rated("a", -1), rated("c", 1)])
    assert [] == texts_of_pairs([completion("d", ["7"])], [rated("d", 1)])
    assert [] == texts_of_pairs([completion("e", ["8", "8"])], [rated("e", 1)])


def test_answers_without_text_are_skipped() -> None:
    """Tool calls, empty texts, and races that returned nothing."""
    called, empty, none = (completion(id, ["x", "y"]) for id in "abc")
    called.candidates[0].n_tool_calls = 1
    empty.candidates[0].text = " "
    none.winners = []
    assert [] == texts_of_pairs([called, empty, none], [rated(id, 1) for id in "abc"])
