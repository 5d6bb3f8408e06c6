"""Curate records into examples, held-out prompts and exclusions with one reason each. Pure: no I/O.

A record's reason is the first of ``Reason`` that holds, in their order there. Reasons up to ``NO_USER_TEXT`` exclude a
conversation from the held-out prompts, too. The order of the input does not matter.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from distill.dataset.duplicates import NearDuplicates
from distill.dataset.example import Example, HeldOutPrompt, ScoredAnswer
from distill.dataset.schema import first_winner
from distill.dataset.split import conversation_key, first_user_text, is_held_out
from distill.settings import DatasetSettings
from gateway.journal.record import CandidateRecord, CompletionRecord, FeedbackRecord
from gateway.types import JsonObject, Selection


class Reason(StrEnum):
    """Reasons why a record neither trains nor adds a held-out prompt, in words for a table."""

    REPEATED = "the same record again"
    NOT_STORED = "the caller asked not to store it"
    TOOLS = "tools were offered or called"
    CONSTRAINED = "a response format or logit bias shaped the answer"
    NO_USER_TEXT = "the user said nothing in words"
    HELD_OUT_REPEAT = "held out, the same or nearly the same prompt as another"
    NEGATIVE_FEEDBACK = "negative feedback"
    ROLLED_BACK = "its adapter was rolled back"
    SINGLE = "one answer, nothing to choose from"
    FALLBACK = "winner not chosen by score"
    FEW_DRAWS = "fewer than two draws"
    FEW_SCORES = "fewer than two scores"
    PROMPT_TRUNCATED = "the judge saw a cut prompt"
    NO_SPREAD = "no spread of scores"
    TRUNCATED = "winner cut by the token limit"
    EMPTY = "winner is empty"
    REASONED = "winner's reasoning is not recorded"
    UNUSABLE = "winner is not what was asked for"
    MARGIN = "winner too close to the mean"
    EARLIER_REWARD_MODEL = "winner chosen by an earlier reward model"
    NEAR_HELD_OUT = "nearly a held-out prompt"
    NEAR_DUPLICATE = "nearly the same prompt as a newer one"
    PROMPT_CAP = "enough newer winners of the same prompt"
    TRAINING_CAP = "enough newer winners in all"


@dataclass(frozen=True, slots=True)
class Curated:
    """The curated set. ``total == len(examples) + len(held_out) + sum(excluded.values())``.

    ``examples`` ascend by time. ``held_out`` ascend by key, which is a hash: the first k of them are a random sample,
    almost the same every night. ``excluded`` has every reason, in order, with 0 for those that no record has.
    """

    examples: list[Example]
    held_out: list[HeldOutPrompt]
    excluded: dict[Reason, int]
    total: int

    @property
    def reward_models(self) -> dict[str, int]:
        """The number of examples that each reward model chose; the model of the newest example comes last."""
        newest_first = dict.fromkeys(example.reward_model or "(unknown)" for example in reversed(self.examples))
        counts = Counter(example.reward_model or "(unknown)" for example in self.examples)
        return {name: counts[name] for name in reversed(newest_first)}


@dataclass(frozen=True, slots=True)
class _Place:
    """The oldest record of a held-out conversation."""

    time_ms: int
    record_id: str
    messages: list[JsonObject]


def curate(
    completions: Iterable[CompletionRecord],
    feedback: Iterable[FeedbackRecord],
    settings: DatasetSettings,
    *,
    rolled_back: Collection[str] = (),
    on_record: Callable[[], None] = lambda: None,
) -> Curated:
    """Sort records into examples, held-out prompts and exclusions.

    Args:
        completions: Races, in any order; only examples stay in memory. A repeated id counts once.
        feedback: Callers' ratings of them.
        settings: The held-out share and the conditions for examples.
        rolled_back: Adapters that were rolled back: their answers must not train the next one.
        on_record: Called after each rating and each completion, for a progress bar.
    """
    disliked: set[str] = set()
    for each in feedback:
        if each.rating < 0:
            disliked.add(each.completion_id)
        on_record()
    excluded: Counter[Reason] = Counter()
    seen: set[str] = set()
    held_out: dict[str, _Place] = {}
    candidates: defaultdict[str, list[Example]] = defaultdict(list)
    for record in completions:
        reason = Reason.REPEATED if record.id in seen else unfit(record)
        seen.add(record.id)
        if reason is None:
            messages = record.messages or []
            key = conversation_key(messages)
            if is_held_out(key, settings.held_out_share):
                place = _Place(record.time_ms, record.id, messages)
                other = held_out.get(key)
                # The oldest stays, so that its samples of earlier nights can be reused.
                held_out[key] = place if other is None else min(place, other, key=lambda p: (p.time_ms, p.record_id))
                reason = None if other is None else Reason.HELD_OUT_REPEAT
            else:
                taken_back = record.adapter in rolled_back
                found = example(record, key, settings, disliked=record.id in disliked, rolled_back=taken_back)
                if isinstance(found, Example):
                    candidates[key].append(found)
                else:
                    reason = found
        if reason is not None:
            excluded[reason] += 1
        on_record()
    if settings.reward_models == "newest":
        _drop_earlier_reward_models(candidates, excluded)
    prompts, measured = _distinct(held_out, settings.near_duplicate, excluded)
    examples = _thinned(candidates, measured, settings, excluded)
    total = len(prompts) + len(examples) + excluded.total()
    return Curated(examples, prompts, {reason: excluded[reason] for reason in Reason}, total)


def unfit(record: CompletionRecord) -> Reason | None:
    """Return why a record's conversation can neither train nor measure; None if it can."""
    messages, sampling = record.messages, record.sampling
    if not record.store or messages is None:
        return Reason.NOT_STORED
    if (
        sampling.tools
        or any(message.get("tool_calls") or message.get("role") == "tool" for message in messages)
        or any(candidate.n_tool_calls or candidate.tool_calls for candidate in record.candidates)
    ):
        return Reason.TOOLS
    response_format = sampling.response_format
    if (response_format is not None and response_format.get("type") != "text") or sampling.logit_bias:
        return Reason.CONSTRAINED
    if not first_user_text(messages).strip():
        return Reason.NO_USER_TEXT
    return None


def example(
    record: CompletionRecord, key: str, settings: DatasetSettings, *, disliked: bool, rolled_back: bool = False
) -> Example | Reason:
    """Build the example of a fit record whose conversation is not held out, or return why there is none."""
    winner = first_winner(record)
    if rolled_back and not disliked:
        return Reason.ROLLED_BACK
    # An answer that breaks the request's contract never trains, and its reward is no measure for others.
    scored = [
        candidate
        for candidate in record.candidates
        if candidate.reward is not None and candidate.error is None and (candidate.usable or candidate is winner)
    ]
    if (reason := _no_contest(record, scored, winner, disliked=disliked)) is not None:
        return reason
    assert winner is not None, "no contest without a winner"
    rewards = [candidate.reward for candidate in scored if candidate.reward is not None]
    mean, sd = _mean_and_sd(rewards)
    if not 0 < sd < math.inf:
        return Reason.NO_SPREAD
    if winner.finish_reason == "length" or winner.cut_at_tokens is not None:
        return Reason.TRUNCATED
    if not (winner.text or "").strip():
        return Reason.EMPTY
    if winner.reasoned:
        return Reason.REASONED  # without it, the next model would learn to answer without thinking
    if not winner.usable:
        return Reason.UNUSABLE
    best = _answer(winner)
    margin_sd = (best.reward - mean) / sd
    if margin_sd < settings.min_margin_sd:
        return Reason.MARGIN
    losers = _losers([candidate for candidate in scored if candidate is not winner], best)
    messages = record.messages or []
    return Example(
        key, record.id, record.time_ms, messages, best, losers, margin_sd, record.adapter, record.reward_model
    )


def _no_contest(
    record: CompletionRecord, scored: list[CandidateRecord], winner: CandidateRecord | None, *, disliked: bool
) -> Reason | None:
    """Return why a race cannot train whatever its rewards; None if it can, and then there is a winner."""
    if disliked:
        return Reason.NEGATIVE_FEEDBACK
    if record.selection is Selection.SINGLE:
        return Reason.SINGLE
    # A winner without a reward was not chosen by reward, whatever the record says.
    if record.selection is not Selection.SCORED or winner is None or winner not in scored:
        return Reason.FALLBACK
    if record.n_run < 2:
        return Reason.FEW_DRAWS
    if len(scored) < 2:
        return Reason.FEW_SCORES
    if any(candidate.prompt_truncated for candidate in scored):
        return Reason.PROMPT_TRUNCATED
    return None


def _mean_and_sd(rewards: list[float]) -> tuple[float, float]:
    """Return mean and population standard deviation; the latter is 0 if the rewards are equal or overflow."""
    if max(rewards) == min(rewards):
        return rewards[0], 0.0
    try:
        mean = math.fsum(rewards) / len(rewards)
        return mean, math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    except OverflowError:
        return 0.0, 0.0


def _answer(candidate: CandidateRecord) -> ScoredAnswer:
    assert candidate.reward is not None, "only scored candidates are answers"
    return ScoredAnswer(candidate.text or "", candidate.reward, candidate.tokens)


def _losers(candidates: list[CandidateRecord], winner: ScoredAnswer) -> tuple[ScoredAnswer, ...]:
    """Return distinct non-empty texts other than the winner's, ascending by reward; the highest of equal texts."""
    ascending = sorted(
        (_answer(candidate) for candidate in candidates), key=lambda answer: (answer.reward, answer.text)
    )
    distinct = {answer.text: answer for answer in ascending if answer.text.strip() and answer.text != winner.text}
    return tuple(sorted(distinct.values(), key=lambda answer: (answer.reward, answer.text)))


def _drop_earlier_reward_models(candidates: dict[str, list[Example]], excluded: Counter[Reason]) -> None:
    """Keep the examples whose winner the reward model of the newest example chose."""
    newest = max((example for group in candidates.values() for example in group), key=_age, default=None)
    for key, group in candidates.items():
        kept = [example for example in group if newest is not None and example.reward_model == newest.reward_model]
        excluded[Reason.EARLIER_REWARD_MODEL] += len(group) - len(kept)
        candidates[key] = kept


def _distinct(
    held_out: dict[str, _Place], threshold: float, excluded: Counter[Reason]
) -> tuple[list[HeldOutPrompt], NearDuplicates]:
    """Return held-out prompts, without near-duplicates of older ones, and an index of them all."""
    measured = NearDuplicates(threshold)
    kept = []
    for key, place in sorted(held_out.items(), key=lambda item: (item[1].time_ms, item[1].record_id)):
        text = first_user_text(place.messages)
        if measured.has(text):
            excluded[Reason.HELD_OUT_REPEAT] += 1
        else:
            kept.append(HeldOutPrompt(key, place.messages))
        measured.add(text)
    return sorted(kept, key=lambda prompt: prompt.key), measured


def _thinned(
    candidates: dict[str, list[Example]], measured: NearDuplicates, settings: DatasetSettings, excluded: Counter[Reason]
) -> list[Example]:
    """Return the newest examples, unlike every held-out prompt, up to the limits a prompt and in all, by time."""
    trained = NearDuplicates(settings.near_duplicate)
    kept: list[Example] = []
    newest_first = [sorted(group, key=_age, reverse=True) for group in candidates.values() if group]
    for group in sorted(newest_first, key=lambda group: _age(group[0]), reverse=True):
        text = first_user_text(group[0].messages)
        if measured.has(text):
            excluded[Reason.NEAR_HELD_OUT] += len(group)
        elif trained.has(text):
            excluded[Reason.NEAR_DUPLICATE] += len(group)
        else:
            trained.add(text)
            kept += group[: settings.max_per_prompt]
            excluded[Reason.PROMPT_CAP] += len(group[settings.max_per_prompt :])
    kept = sorted(kept, key=_age, reverse=True)
    excluded[Reason.TRAINING_CAP] += len(kept[settings.max_examples :])
    kept = kept[: settings.max_examples]
    return sorted(kept, key=_age)


def _age(found: Example) -> tuple[int, str]:
    return found.time_ms, found.record_id
