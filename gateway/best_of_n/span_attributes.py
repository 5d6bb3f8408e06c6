"""Attributes of a race's spans: its plan, its candidates (in OpenTelemetry's terms for generative AI), its outcome."""

from __future__ import annotations

from gateway.spans import CUT, Attributes
from gateway.types import Answer, Candidate, Delta, Outcome, Plan, Score


def of_race(plan: Plan, *, n_run: int, queue_ms: float) -> Attributes:
    return {
        "ratchet.n": n_run,
        "ratchet.n_asked": plan.n_asked,
        "ratchet.queue_ms": queue_ms,
        "ratchet.policy_version": plan.policy_version,
        "ratchet.arm": plan.arm.name,
        "ratchet.exploration": plan.exploration,
        CUT: False,
    }


def of_outcome(outcome: Outcome) -> Attributes:
    winner = outcome.winners[0]
    attributes = {
        "ratchet.selection": outcome.selection.value,
        "ratchet.winner.index": winner.index,
        "ratchet.n_scored": outcome.n_scored,
        "ratchet.generated_tokens": outcome.generated_tokens,
        "ratchet.deadline_hit": outcome.deadline_hit,
        "ratchet.winner.reward": winner.reward,
        "ratchet.scoring_error": outcome.scoring_error,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def of_candidate(candidate: Candidate) -> Attributes:
    return {"ratchet.candidate.index": candidate.index, CUT: False}


def of_answer(answer: Answer | Delta) -> Attributes:
    reasons = None if answer.finish_reason is None else [answer.finish_reason]
    attributes = {
        "gen_ai.response.finish_reasons": reasons,
        "gen_ai.usage.input_tokens": answer.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.completion_tokens,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def of_score(score: Score) -> Attributes:
    return {"ratchet.reward": score.reward, "ratchet.prompt_truncated": score.prompt_truncated}
