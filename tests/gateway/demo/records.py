"""Records of races, as the demo reads them."""

from collections.abc import Sequence

import redis

from gateway.journal.record import CompletionRecord, completion_record, encode
from gateway.journal.stream import read_entries, stream_key
from gateway.types import Answer, AnswerRequest, Arm, Candidate, Outcome, Plan, Selection, Timings

KEY = stream_key("ratchet")


def race_record(*, rewards: Sequence[float | None], id: str = "chatcmpl-1") -> CompletionRecord:
    """Return the record of a race with these rewards; None for a candidate that was not scored."""
    candidates = [
        Candidate(index, seed=index, answer=Answer(f"answer {index}", "stop", 3, 2), reward=reward)
        for index, reward in enumerate(rewards)
    ]
    winner = max(candidates, key=lambda candidate: -1e9 if candidate.reward is None else candidate.reward)
    outcome = Outcome(
        plan=Plan(
            n_asked=len(rewards),
            n_ordinary=len(rewards),
            seed=1,
            arm=Arm("stable", None, len(rewards)),
            policy_version=0,
        ),
        n_run=len(rewards),
        candidates=candidates,
        winners=[winner],
        selection=Selection.SCORED,
        timings=Timings(),
    )
    return completion_record(AnswerRequest("ratchet", [{"role": "user", "content": "why?"}]), outcome, id=id)


def add(client: redis.Redis, record: CompletionRecord) -> None:
    """Add a record to the stream as the journal does."""
    client.xadd(KEY, {"id": record.id, "data": encode(record)})


def stream_of(redis_url: str) -> list[CompletionRecord]:
    """Return every race in the stream, oldest first."""
    with redis.Redis.from_url(redis_url) as client:
        records = [entry.record() for entry in read_entries(client, KEY)]
    return [record for record in records if isinstance(record, CompletionRecord)]
