"""Every case there is, in the order in which they are tried."""

from __future__ import annotations

from loadtests.hostile import (
    body_cases,
    caller_cases,
    http_cases,
    redis_cases,
    schema_cases,
    stream_cases,
    upstream_cases,
)
from loadtests.hostile.case import Case

GROUPS = {
    "http": "HTTP: smuggling, chunks, headers, paths, methods, time",
    "json": "JSON that is none, or nearly",
    "type": "a wrong type in every field of a chat",
    "chat": "chats at their bounds and beyond",
    "name": "names that lead to files, hosts and shells",
    "header": "headers of callers",
    "key": "keys, scopes, routes of operators",
    "load": "many at once",
    "stream": "callers who hang up in mid-stream",
    "feedback": "ratings",
    "backend": "answers of the backend",
    "reward": "answers of the reward server",
    "redis": "what Redis holds and says",
    "schema": "schemas: bombs, recursions, patterns; on TGI's compiler",
    "vllm": "the same schemas, on vLLM's rules",
    "llamacpp": "the same schemas, on the real llama.cpp",
}
"""What the first word of a case's id stands for."""


def catalogue(canary_port: int) -> tuple[Case, ...]:
    """All cases; whatever could lead the gateway away leads to the canary's port."""
    return (
        *http_cases.CASES,
        *body_cases.CASES,
        *caller_cases.cases(canary_port),
        *stream_cases.CASES,
        *upstream_cases.cases(canary_port),
        *redis_cases.CASES,
        *schema_cases.cases(canary_port),
    )
