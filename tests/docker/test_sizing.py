"""The sizes of records in docker/README.md are those of real records."""

from __future__ import annotations

import asyncio
import random
import re
import uuid
from pathlib import Path

import pytest

from gateway.journal.record import CompletionRecord, completion_record, encode
from gateway.journal.writer import Journal
from gateway.settings import JournalSettings, RedisSettings
from gateway.types import Answer, AnswerRequest, Arm, Candidate, Outcome, Plan, Selection, Timings
from tests.docker.files import DOCKER
from tests.redis_server import RedisServer

_RECORDS = 100
_TOLERANCE = 0.1


def record(n: int, answer_bytes: int, conversation_bytes: int, numbers: random.Random) -> CompletionRecord:
    """Return a record as in production: long ids, rewards and times of many digits."""
    candidates = [
        Candidate(
            index,
            numbers.getrandbits(63),
            Answer("a" * answer_bytes, "stop", 80, 130),
            reward=numbers.uniform(-5, 5),
            latency_ms=numbers.uniform(500, 3000),
        )
        for index in range(n)
    ]
    plan = Plan(
        n_asked=n,
        n_ordinary=n,
        seed=numbers.getrandbits(63),
        arm=Arm("stable", "rft-2026-11-01-0123abcd", n),
        policy_version=12,
    )
    outcome = Outcome(
        plan,
        n,
        candidates,
        candidates[-1:],
        Selection.SCORED,
        Timings(),
        reward_model="Skywork/Skywork-Reward-V2-Qwen3-0.6B",
    )
    request = AnswerRequest("ratchet", [{"role": "user", "content": "q" * conversation_bytes}])
    return completion_record(request, outcome, id=f"chatcmpl-{uuid.uuid4().hex}")


def guide() -> tuple[int, int]:
    """Return the guide's bytes of a record and of each candidate, without texts."""
    found = re.search(r"(\d,\d{3}) \+ N × \((\d+) \+ answer\) \+ conversation", (DOCKER / "README.md").read_text())
    assert found is not None
    return int(found[1].replace(",", "")), int(found[2])


@pytest.mark.parametrize(
    ("n", "answer", "conversation"), [(1, 500, 300), (4, 500, 300), (8, 500, 4000), (8, 2000, 300)]
)
async def test_a_record_has_the_guides_size(
    n: int, answer: int, conversation: int, redis_server: RedisServer, tmp_path: Path
) -> None:
    """In Redis, by its own count; in the spool it is a little smaller."""
    numbers = random.Random(7)
    journal = Journal(JournalSettings(spool_dir=tmp_path, durability="relaxed"), RedisSettings(url=redis_server.url))
    records = [record(n, answer, conversation, numbers) for _ in range(_RECORDS)]
    await journal.start()
    try:
        await asyncio.gather(*(journal.append(each) for each in records))
        with redis_server.client() as client:
            async with asyncio.timeout(30):
                while client.xlen("ratchet:journal") < _RECORDS:
                    await asyncio.sleep(0.01)
            used = client.memory_usage("ratchet:journal", samples=0)
    finally:
        await journal.aclose()
    base, each_candidate = guide()
    expected = base + n * (each_candidate + answer) + conversation
    assert expected == pytest.approx(used / _RECORDS, rel=_TOLERANCE)
    assert len(encode(records[0])) <= used / _RECORDS
