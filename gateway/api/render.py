"""Render an outcome as OpenAI's answer: the body, its extension ``best_of_n``, the headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

from gateway.types import Answer, Candidate, JsonObject, Outcome


def completion(outcome: Outcome, *, completion_id: str, created: int, model: str) -> JsonObject:
    """Return the body of an answer that is not streamed; its schema is ``gateway.api.schemas.ChatCompletion``."""
    return {
        "id": completion_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice(rank, answer) for rank, answer in enumerate(answers(outcome))],
        "usage": usage(outcome),
        "best_of_n": report(outcome),
    }


def choice(rank: int, answer: Answer) -> JsonObject:
    text = answer.text if answer.tool_calls else answer.text or ""
    message: JsonObject = {"role": "assistant", "content": text, "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = answer.tool_calls
    return {
        "index": rank,
        "message": message,
        "logprobs": answer.logprobs,
        "finish_reason": answer.finish_reason,
    }


def answers(outcome: Outcome) -> list[Answer]:
    """Return the answers for the caller, best first."""
    return [candidate.answer for candidate in outcome.winners if candidate.answer is not None]


def usage(outcome: Outcome) -> JsonObject:
    """Return the tokens of the prompt, counted once, and of every returned answer."""
    returned = answers(outcome)
    prompt_tokens = returned[0].prompt_tokens if returned else 0
    completion_tokens = sum(answer.completion_tokens for answer in returned)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def report(outcome: Outcome) -> JsonObject:
    """Return the facts of the race behind the answer; the schema is ``gateway.api.schemas.BestOfNReport``."""
    plan, timings = outcome.plan, outcome.timings
    return {
        "n": outcome.n_run,
        "n_asked": plan.n_asked,
        "scored": outcome.n_scored,
        "selection": outcome.selection.value,
        "rewards": outcome.rewards,
        "scoring_error": outcome.scoring_error,
        "unusable": [None if c.unusable is None else c.unusable.value for c in outcome.candidates],
        "winners": [candidate.index for candidate in outcome.winners],
        "shortfall": shortfall(outcome),
        "generated_tokens": outcome.generated_tokens,
        "policy": plan.policy_version,
        "adapter": plan.arm.adapter,
        "arm": plan.arm.name,
        "arm_failed": plan.arm_failed,
        "reward_model": outcome.reward_model,
        "exploration": plan.exploration,
        "deadline_hit": outcome.deadline_hit,
        "timings": {
            "queue_ms": round(timings.queue_ms, 3),
            "generate_ms": round(timings.generate_ms, 3),
            "score_ms": round(timings.score_ms, 3),
            "journal_ms": round(timings.journal_ms, 3),
            "overhead_ms": round(timings.overhead_ms, 3),
            "total_ms": round(timings.total_ms, 3),
        },
    }


def shortfall(outcome: Outcome) -> str | None:
    """Return in words why fewer answers are returned than were asked for; None if none is missing."""
    returned, asked = len(outcome.winners), outcome.plan.n_returned
    if returned >= asked:
        return None
    others = [candidate for candidate in outcome.candidates if candidate not in outcome.winners]
    reasons = Counter("failed" if c.answer is None else c.unusable.value if c.unusable else "usable" for c in others)
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"{returned} of {asked} answers: of {outcome.n_run} candidates the others are no use ({listed})"


def headers(outcome: Outcome) -> dict[str, str]:
    """Return the facts of the race as ``x-bon-*`` headers."""
    reward, missing = _reward(outcome.winners), shortfall(outcome)
    return {
        "x-bon-n": str(outcome.n_run),
        "x-bon-n-asked": str(outcome.plan.n_asked),
        "x-bon-scored": str(outcome.n_scored),
        "x-bon-selection": outcome.selection.value,
        "x-bon-generated-tokens": str(outcome.generated_tokens),
        "x-bon-policy": str(outcome.plan.policy_version),
        "x-bon-arm": outcome.plan.arm.name,
        "x-bon-total-ms": f"{outcome.timings.total_ms:.3f}",
        "x-bon-overhead-ms": f"{outcome.timings.overhead_ms:.3f}",
        **({"x-bon-reward-model": _header_text(outcome.reward_model)} if outcome.reward_model else {}),
        **({"x-bon-reward": f"{reward:.6g}"} if reward is not None else {}),
        **({"x-bon-shortfall": missing} if missing is not None else {}),
    }


def _header_text(text: str) -> str:
    """Return a text that a header can hold: percent-encoded where necessary."""
    return quote(text, safe="/:@+=,~ ")


def _reward(winners: Sequence[Candidate]) -> float | None:
    return winners[0].reward if winners else None
