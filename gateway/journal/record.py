"""The journal's records: one versioned JSON object for each completion and each feedback.

Encoding never fails on content that a caller can send. Values that JSON in UTF-8 cannot hold are replaced, only in the
record: a lone surrogate by U+FFFD, a number beyond 64 bits by the nearest float, NaN and infinities by null, values
nested deeper than ``MAX_DEPTH`` by null. Decoding ignores unknown fields, so that an older reader reads a newer record.
The completion's classes are not frozen: every request builds eight candidates, and frozen ones cost twice as much.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, cast

import orjson
from pydantic import TypeAdapter, ValidationError

from gateway.errors import JournalError
from gateway.types import (
    AnswerRequest,
    ArmName,
    Candidate,
    Ending,
    FinishReason,
    JsonObject,
    Outcome,
    Sampling,
    Selection,
    Timings,
)

SCHEMA_VERSION = 1
MAX_DEPTH = 100


@dataclass(slots=True)
class CandidateRecord:
    """One candidate. ``text`` and ``tool_calls`` are absent if it failed or if ``store`` is false."""

    index: int
    seed: int
    text: str | None = None
    tool_calls: list[JsonObject] | None = None
    n_tool_calls: int = 0
    finish_reason: FinishReason | None = None
    tokens: int = 0
    reward: float | None = None
    prompt_truncated: bool = False
    cut_at_tokens: int | None = None
    latency_ms: float | None = None  # until the last token
    error: str | None = None  # name of the error's class
    unusable: str | None = None  # why it is not a valid answer (gateway.types.Unusable); never trained on
    reasoned: bool | None = None  # the server also gave reasoning, which is not recorded; never trained on

    @property
    def usable(self) -> bool:
        """True if the answer is complete and valid; a record older than ``unusable`` tells only part of that."""
        cut = self.finish_reason in ("length", "content_filter") or self.cut_at_tokens is not None
        return not cut and self.error is None and self.unusable is None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt (once), of the returned answers, and of all finished candidates."""

    prompt_tokens: int
    returned_tokens: int
    generated_tokens: int


@dataclass(slots=True)
class CompletionRecord:
    """One race. ``winners`` are candidate indexes, best first; ``time_ms`` is UTC, since the epoch.

    ``sampling`` holds the parameters used, the policy's default temperature included. If ``store`` is false,
    ``messages``, ``user``, ``metadata``, each candidate's text and tool calls and the parts of ``sampling`` that can
    contain text are absent: the record is counted and never trained on.

    ``arm`` answered with ``adapter``; ``arm_failed`` was chosen first and failed. ``n_from_caller``: the caller and not
    the policy chose N. An ``ending`` other than ``answered`` is a stream that ended before its answer was complete: it
    has no winner, and not the text that its caller received.
    """

    id: str
    time_ms: int
    key_id: str | None
    model: str
    store: bool
    n_messages: int
    messages: list[JsonObject] | None
    sampling: Sampling
    user: str | None
    metadata: JsonObject | None
    policy_version: int
    adapter: str | None
    reward_model: str | None
    n_asked: int
    n_ordinary: int
    n_run: int
    n_returned: int
    seed: int
    candidates: list[CandidateRecord]
    winners: list[int]
    selection: Selection
    exploration: bool
    exploration_probability: float
    deadline_hit: bool
    scoring_error: str | None
    usage: Usage
    timings: Timings
    arm: ArmName = "stable"
    arm_failed: ArmName | None = None
    n_from_caller: bool = False
    ending: Ending = "answered"
    kind: Literal["completion"] = "completion"
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class FeedbackRecord:
    """A caller's rating of an answer. A ``rating`` below 0 is negative: that completion is never trained on."""

    id: str
    completion_id: str
    rating: float
    comment: str | None
    time_ms: int
    key_id: str | None
    kind: Literal["feedback"] = "feedback"
    schema_version: int = SCHEMA_VERSION


Record = CompletionRecord | FeedbackRecord

_ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "completion": TypeAdapter(CompletionRecord),
    "feedback": TypeAdapter(FeedbackRecord),
}


def completion_record(
    request: AnswerRequest, outcome: Outcome, *, id: str, key_id: str | None = None, time_ms: int | None = None
) -> CompletionRecord:
    """Build the record of one race.

    Args:
        request: What the caller asked for. Where ``store`` is false, no content goes into the record.
        outcome: How the race ended.
        id: The completion's id, as the caller sees it (``chatcmpl-…``).
        key_id: Hash of the API key, never the key.
        time_ms: UTC in milliseconds since the epoch; now, if not given.
    """
    plan, store = outcome.plan, request.store
    return CompletionRecord(
        id=id,
        time_ms=_now_ms() if time_ms is None else time_ms,
        key_id=key_id,
        model=request.model,
        store=store,
        n_messages=len(request.messages),
        messages=cast("list[JsonObject]", list(request.messages)) if store else None,
        sampling=plan.sampling if store else _without_content(plan.sampling),
        user=request.user if store else None,
        metadata=dict(request.metadata) if store and request.metadata is not None else None,
        policy_version=plan.policy_version,
        adapter=plan.arm.adapter,
        reward_model=outcome.reward_model,
        n_asked=plan.n_asked,
        n_ordinary=plan.n_ordinary,
        n_run=outcome.n_run,
        n_returned=plan.n_returned,
        seed=plan.seed,
        candidates=[_candidate(candidate, store=store) for candidate in outcome.candidates],
        winners=[winner.index for winner in outcome.winners],
        selection=outcome.selection,
        exploration=plan.exploration,
        exploration_probability=plan.exploration_probability,
        deadline_hit=outcome.deadline_hit,
        scoring_error=outcome.scoring_error,
        usage=_usage(outcome),
        timings=outcome.timings,
        arm=plan.arm.name,
        arm_failed=plan.arm_failed,
        n_from_caller=plan.n_from_caller,
        ending=outcome.ending,
    )


def feedback_record(
    *,
    completion_id: str,
    rating: float,
    comment: str | None = None,
    key_id: str | None = None,
    id: str | None = None,
    time_ms: int | None = None,
) -> FeedbackRecord:
    """Build the record of one feedback. It has its own ``id``: one completion may be rated twice."""
    return FeedbackRecord(
        id=id or f"feedback-{uuid.uuid4().hex}",
        completion_id=completion_id,
        rating=rating,
        comment=comment,
        time_ms=_now_ms() if time_ms is None else time_ms,
        key_id=key_id,
    )


def without_content(record: Record) -> Record:
    """Return a completion as with ``store: false``, or a feedback without its comment."""
    if isinstance(record, FeedbackRecord):
        return replace(record, comment=None)
    return replace(
        record,
        store=False,
        messages=None,
        user=None,
        metadata=None,
        sampling=_without_content(record.sampling),
        candidates=[replace(candidate, text=None, tool_calls=None) for candidate in record.candidates],
    )


def encode(record: Record) -> bytes:
    """Return the record as JSON in UTF-8. Never fails on a caller's content: see the module's docstring."""
    try:
        return orjson.dumps(record)
    except TypeError:  # a lone surrogate, a number beyond 64 bits, or too deep; rare and slow
        return orjson.dumps(_storable(record, MAX_DEPTH))


def decode(data: bytes) -> Record:
    """Parse a record of any version.

    Raises:
        JournalError: The bytes are not a record of this journal; the message holds none of their content.
    """
    try:
        document = orjson.loads(data)
    except ValueError as error:
        raise JournalError(f"unreadable record of {len(data)} bytes: not JSON in UTF-8") from error
    kind = document.get("kind") if isinstance(document, dict) else None
    adapter = _ADAPTERS.get(kind) if isinstance(kind, str) else None
    if adapter is None:
        raise JournalError(f"unreadable record of {len(data)} bytes: its kind is neither completion nor feedback")
    try:
        record: Record = adapter.validate_python(document)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['type']}"
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        )
        # From None: pydantic's own message quotes the record's content.
        raise JournalError(f"unreadable {kind} record of {len(data)} bytes: {problems}") from None
    return record


def _candidate(candidate: Candidate, *, store: bool) -> CandidateRecord:
    answer = candidate.answer
    return CandidateRecord(
        index=candidate.index,
        seed=candidate.seed,
        text=answer.text if answer is not None and store else None,
        tool_calls=list(answer.tool_calls) if answer is not None and answer.tool_calls and store else None,
        n_tool_calls=0 if answer is None else len(answer.tool_calls),
        finish_reason=None if answer is None else answer.finish_reason,
        tokens=0 if answer is None else answer.completion_tokens,
        reward=candidate.reward,
        prompt_truncated=candidate.prompt_truncated,
        cut_at_tokens=candidate.cut_at_tokens,
        latency_ms=candidate.latency_ms,
        error=None if candidate.error is None else type(candidate.error).__name__,
        unusable=None if candidate.unusable is None else candidate.unusable.value,
        reasoned=True if answer is not None and answer.reasoned else None,
    )


def _usage(outcome: Outcome) -> Usage:
    finished = [candidate.answer for candidate in outcome.candidates if candidate.answer is not None]
    returned = [winner.answer for winner in outcome.winners if winner.answer is not None]
    return Usage(
        prompt_tokens=max((answer.prompt_tokens for answer in finished), default=0),
        returned_tokens=sum(answer.completion_tokens for answer in returned),
        generated_tokens=outcome.generated_tokens,
    )


def _without_content(sampling: Sampling) -> Sampling:
    """Remove the parts that can contain text (stop strings, token ids, tools, their names, formats); keep numbers."""
    choice = sampling.tool_choice
    return replace(
        sampling,
        stop=(),
        logit_bias=None,
        tools=(),
        tool_choice=choice if isinstance(choice, str) else None,
        response_format=None,
    )


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _storable(value: object, depth: int) -> object:
    """Return the value with everything replaced that JSON in UTF-8 cannot hold."""
    if isinstance(value, str):
        # UTF-16 joins two surrogates that form a character; only lone ones are replaced.
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value) if math.log2(abs(value)) < 1023 else None
    if depth == 0:
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _storable(getattr(value, field.name), depth - 1) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_storable(str(key), 1): _storable(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item, depth - 1) for item in value]
    return value
