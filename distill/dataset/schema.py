"""Schema of the archive's rows: a record's useful facts as typed columns, and the record itself as it was written.

Of the typed columns we read only ids and kinds; the others are for queries with DuckDB, pandas or ``datasets``. A later
schema may add columns and raise ``SCHEMA_VERSION``; the ``record`` column never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from distill.dataset.split import conversation_key, first_user_text
from distill.errors import DataError
from gateway.journal.record import CandidateRecord, CompletionRecord, FeedbackRecord, Record, decode

SCHEMA_VERSION = 1
VERSION_KEY = b"ratchet.archive_schema"

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
_CANDIDATE = pa.struct(
    [
        ("index", pa.int64()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int64()),
        ("reward", pa.float64()),
        ("error", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("key_id", pa.string()),
        # By Redis's clock; ``time`` is by the gateway's, which may be wrong. Null in parts of earlier versions.
        ("collected", pa.timestamp("ms", tz="UTC")),
        # Completions only, from here to generated_tokens.
        ("conversation_key", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        ("model", pa.string()),
        ("store", pa.bool_()),
        ("policy_version", pa.int64()),
        ("adapter", pa.string()),
        ("arm", pa.string()),
        ("reward_model", pa.string()),
        ("selection", pa.string()),
        ("n_asked", pa.int64()),
        ("n_run", pa.int64()),
        ("exploration", pa.bool_()),
        ("exploration_probability", pa.float64()),
        ("deadline_hit", pa.bool_()),
        ("candidates", pa.list_(_CANDIDATE)),
        ("rewards", pa.list_(pa.float64())),
        ("winner", pa.string()),
        ("winner_reward", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("returned_tokens", pa.int64()),
        ("generated_tokens", pa.int64()),
        # Feedback only.
        ("completion_id", pa.string()),
        ("rating", pa.float64()),
        # The record as the gateway wrote it: JSON, whole.
        ("record", pa.string()),
    ],
    metadata={VERSION_KEY: str(SCHEMA_VERSION)},
)
_MISFIT = (pa.ArrowException, ValueError, OverflowError)


@dataclass(frozen=True, slots=True)
class Row:
    """A row to be archived. ``day`` is the record's own (UTC), so that a late copy is found as a duplicate."""

    id: str
    kind: str
    day: str
    columns: dict[str, Any]


def row_of(data: bytes, collected: datetime | None = None) -> Row:
    """Build the archive's row of one record.

    Args:
        data: The record as the journal encoded it.
        collected: Time of collection, by Redis's clock.

    Raises:
        JournalError: The bytes are not a record.
        DataError: The record's time is outside the calendar.
    """
    record = decode(data)
    try:
        day = datetime.fromtimestamp(record.time_ms // 1000, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise DataError(f"{record.kind} record of {len(data)} bytes has no day") from error
    return Row(record.id, record.kind, day, _columns(record) | {"collected": collected, "record": data.decode()})


def table_of(rows: Sequence[Row]) -> tuple[pa.Table, list[Row]]:
    """Build an Arrow table of ``SCHEMA``; also return the rows that do not fit (numbers beyond 64 bits, …)."""
    try:
        return _table(rows), []
    except _MISFIT:
        misfits = [row for row in rows if not _fits(row)]
        return _table([row for row in rows if row not in misfits]), misfits


def first_winner(record: CompletionRecord) -> CandidateRecord | None:
    """Return the candidate whose answer the caller got first, if the record has it."""
    by_index = {candidate.index: candidate for candidate in record.candidates}
    return by_index.get(record.winners[0]) if record.winners else None


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist([row.columns for row in rows], schema=SCHEMA)


def _fits(row: Row) -> bool:
    try:
        _table([row])
    except _MISFIT:
        return False
    return True


def _columns(record: Record) -> dict[str, Any]:
    facts = {"id": record.id, "kind": record.kind, "time": record.time_ms, "key_id": record.key_id}
    return facts | (_feedback(record) if isinstance(record, FeedbackRecord) else _completion(record))


def _feedback(record: FeedbackRecord) -> dict[str, Any]:
    return {"completion_id": record.completion_id, "rating": record.rating}


def _completion(record: CompletionRecord) -> dict[str, Any]:
    winner = first_winner(record)
    messages = record.messages
    return {
        "conversation_key": None if messages is None else conversation_key(messages),
        "prompt": None if messages is None else first_user_text(messages),
        "messages": None if messages is None else [_message(message) for message in messages],
        "model": record.model,
        "store": record.store,
        "policy_version": record.policy_version,
        "adapter": record.adapter,
        "arm": record.arm,
        "reward_model": record.reward_model,
        "selection": record.selection.value,
        "n_asked": record.n_asked,
        "n_run": record.n_run,
        "exploration": record.exploration,
        "exploration_probability": record.exploration_probability,
        "deadline_hit": record.deadline_hit,
        "candidates": [_candidate(candidate) for candidate in record.candidates],
        "rewards": [candidate.reward for candidate in record.candidates],
        "winner": None if winner is None else winner.text,
        "winner_reward": None if winner is None else winner.reward,
        "prompt_tokens": record.usage.prompt_tokens,
        "returned_tokens": record.usage.returned_tokens,
        "generated_tokens": record.usage.generated_tokens,
    }


def _message(message: dict[str, Any]) -> dict[str, str | None]:
    role, content = message.get("role"), message.get("content")
    return {"role": str(role), "content": content if isinstance(content, str) else None}


def _candidate(candidate: CandidateRecord) -> dict[str, Any]:
    return {name: getattr(candidate, name) for name in ("index", "text", "finish_reason", "tokens", "reward", "error")}
