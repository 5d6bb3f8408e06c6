"""Preference pairs for the reward model, from callers' ratings.

The best pair is a liked and a disliked answer to the same conversation. Without one, a rated answer is paired with a
candidate of its own race: a liked one above the candidate with the lowest reward, a disliked one below the runner-up,
which has no complaint.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean

from distill.reward_training.preferences import Conversation, Preference
from gateway.journal.record import CandidateRecord, CompletionRecord, FeedbackRecord

SOURCE = "feedback"


def feedback_pairs(completions: Iterable[CompletionRecord], feedback: Iterable[FeedbackRecord]) -> list[Preference]:
    """Return pairs from rated completions; several ratings of one are averaged, and a mean of 0 is ignored.

    Records without content, answers without text and conversations with other parts than text are skipped.

    Args:
        completions: The journal's races.
        feedback: The journal's ratings.
    """
    ratings: dict[str, list[float]] = defaultdict(list)
    for entry in feedback:
        ratings[entry.completion_id].append(entry.rating)
    liked: dict[Conversation, list[str]] = defaultdict(list)
    disliked: dict[Conversation, list[str]] = defaultdict(list)
    alternatives: dict[tuple[Conversation, str], str] = {}
    for record in completions:
        rating = fmean(ratings.get(record.id, [0.0]))
        conversation, answers = _conversation(record), _texts(record)
        if rating == 0 or conversation is None or not answers:
            continue
        (liked if rating > 0 else disliked)[conversation].append(answers[0])
        if len(answers) > 1:
            alternatives[conversation, answers[0]] = answers[-1] if rating > 0 else answers[1]
    pairs = {
        (conversation, better, worse)
        for conversation in liked
        for better in liked[conversation]
        for worse in disliked.get(conversation, [])
    }
    for conversation in {*liked, *disliked} - {pair[0] for pair in pairs}:
        for answer in {*liked.get(conversation, []), *disliked.get(conversation, [])}:
            other = alternatives.get((conversation, answer))
            if other is not None:
                good = conversation in liked
                pairs.add((conversation, answer if good else other, other if good else answer))
    return [
        Preference(conversation, better, worse, SOURCE, "unknown")
        for conversation, better, worse in sorted(pairs)
        if better != worse
    ]


def _conversation(record: CompletionRecord) -> Conversation | None:
    turns = [(message.get("role"), message.get("content")) for message in record.messages or []]
    texts = tuple((role, content) for role, content in turns if isinstance(role, str) and isinstance(content, str))
    return texts if texts and len(texts) == len(turns) else None


def _texts(record: CompletionRecord) -> list[str]:
    """Return the returned answer, then the other texts by descending reward; empty if none was returned as text."""
    if not record.winners:
        return []
    by_index = {candidate.index: candidate for candidate in record.candidates}
    returned = by_index.get(record.winners[0])
    if returned is None or not (returned.text or "").strip() or returned.n_tool_calls or not returned.usable:
        return []
    others = [
        candidate
        for candidate in record.candidates
        if candidate.reward is not None
        and candidate.usable
        and (candidate.text or "").strip()
        and candidate.text != returned.text
    ]
    others.sort(key=_reward, reverse=True)
    return [str(returned.text), *(str(candidate.text) for candidate in others)]


def _reward(candidate: CandidateRecord) -> float:
    return candidate.reward if candidate.reward is not None else float("-inf")
