"""Records of a trial's traffic, as the gateway writes them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from distill.promotion.guard import Phase
from gateway.journal.record import CompletionRecord, completion_record
from gateway.types import Answer, AnswerRequest, Arm, ArmName, Candidate, Outcome, Plan, Sampling, Selection, Timings

NEW = Arm("canary", "rft-1", 1)
OLD = Arm("stable", None, 4)
CANARY = Phase("night-1", 3, NEW, OLD)

_ids = itertools.count()


def record(
    rewards: Sequence[float | None],
    arm: Arm = OLD,
    *,
    question: str | None = None,
    store: bool = True,
    selection: Selection | None = None,
    temperature: float | None = None,
    deadline_hit: bool = False,
    arm_failed: ArmName | None = None,
    reward_model: str = "judge",
    **plan: Any,
) -> CompletionRecord:
    """One race of ``arm`` with these rewards, in its own conversation unless ``question`` is given."""
    number = next(_ids)
    candidates = [
        Candidate(index, index, Answer(f"answer {index}", "stop", 3, 5), reward=reward)
        for index, reward in enumerate(rewards)
    ]
    scored = [candidate for candidate in candidates if candidate.reward is not None]
    winner = max(scored, key=lambda candidate: candidate.reward or 0.0, default=candidates[0])
    decided: dict[str, Any] = {
        "n_asked": len(rewards),
        "n_ordinary": arm.n,
        "seed": number,
        "arm": arm,
        "policy_version": 3,
        "sampling": Sampling(temperature=temperature),
        "arm_failed": arm_failed,
    }
    return completion_record(
        AnswerRequest("ratchet", [{"role": "user", "content": question or f"question {number}"}], store=store),
        Outcome(
            Plan(**(decided | plan)),
            len(rewards),
            candidates,
            [winner],
            selection or (Selection.SCORED if len(scored) > 1 else Selection.SINGLE),
            Timings(),
            deadline_hit,
            None,
            reward_model,
        ),
        id=f"chatcmpl-{number}",
    )
