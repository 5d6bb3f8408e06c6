"""Records for the dataset's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import redis

from distill.dataset.archive import Archive
from distill.dataset.collect import GROUP
from distill.settings import DatasetSettings
from gateway.journal.record import CandidateRecord, CompletionRecord, FeedbackRecord, Record, Usage, encode
from gateway.journal.stream import stream_key
from gateway.settings import RedisSettings
from gateway.types import JsonObject, Sampling, Selection, Timings

DAY_MS = 86_400_000
STREAM = stream_key("ratchet")
NOON = 1_763_812_800_000  # 2025-11-22 12:00 UTC


def user(text: str) -> list[JsonObject]:
    """A conversation of one user message."""
    return [{"role": "user", "content": text}]


def candidate(index: int, reward: float | None, **changes: Any) -> CandidateRecord:
    """A finished candidate."""
    text = f"answer {index}"
    plain = CandidateRecord(index, seed=index, text=text, finish_reason="stop", tokens=3, reward=reward)
    return replace(plain, **changes)


def race(
    id: str = "chatcmpl-1",
    *,
    prompt: str = "why is the sky blue",
    rewards: Sequence[float | None] = (0.5, 1.5, -0.5, 0.0),
    candidates: list[CandidateRecord] | None = None,
    **changes: Any,
) -> CompletionRecord:
    """A race's record whose winner has the highest reward."""
    drawn = candidates or [candidate(index, reward) for index, reward in enumerate(rewards)]
    ranked = sorted(drawn, key=lambda c: (c.reward is None, -(c.reward or 0.0), c.index))
    record = CompletionRecord(
        id=id,
        time_ms=NOON,
        key_id="4f2a",
        model="ratchet",
        store=True,
        n_messages=1,
        messages=user(prompt),
        sampling=Sampling(temperature=1.0),
        user=None,
        metadata=None,
        policy_version=4,
        adapter="rft-1",
        reward_model="judge",
        n_asked=len(drawn),
        n_ordinary=len(drawn),
        n_run=len(drawn),
        n_returned=1,
        seed=7,
        candidates=drawn,
        winners=[ranked[0].index],
        selection=Selection.SCORED,
        exploration=False,
        exploration_probability=0.02,
        deadline_hit=False,
        scoring_error=None,
        usage=Usage(prompt_tokens=9, returned_tokens=3, generated_tokens=3 * len(drawn)),
        timings=Timings(total_ms=90.0),
    )
    return replace(record, **changes)


def rated(completion_id: str, rating: float, id: str = "feedback-1", time_ms: int = NOON) -> FeedbackRecord:
    """A caller's rating of an answer."""
    return FeedbackRecord(id, completion_id, rating, "so so", time_ms, "4f2a")


def races(count: int, *, days: int = 1, start: int = 0) -> list[CompletionRecord]:
    """Races spread over days, each with its own id and prompt."""
    numbers = range(start, start + count)
    return [race(f"chatcmpl-{n}", prompt=f"question {n}", time_ms=NOON + (n % days) * DAY_MS + n) for n in numbers]


def publish(client: redis.Redis, settings: RedisSettings, records: Sequence[Record | bytes]) -> None:
    """Add records (or other bytes) to the stream as the journal does."""
    with client.pipeline(transaction=False) as pipeline:
        for record in records:
            data = record if isinstance(record, bytes) else encode(record)
            pipeline.xadd(stream_key(settings.key_prefix), {"id": getattr(record, "id", "?"), "data": data})
        pipeline.execute()


def archived(dataset: DatasetSettings) -> list[str]:
    return sorted(record.id for record in Archive(dataset.archive_dir).completions())


def ids(records: Sequence[CompletionRecord]) -> list[str]:
    return sorted(record.id for record in records)


def pending(client: redis.Redis) -> int:
    return int(client.xpending(STREAM, GROUP)["pending"])
