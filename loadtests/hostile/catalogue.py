"""All cases, in the order in which they are tried."""

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
    "json": "not JSON, or nearly JSON",
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
    "redis": "data and replies of Redis",
    "schema": "schemas: bombs, recursions, patterns; on TGI's compiler",
    "vllm": "the same schemas, on vLLM's rules",
    "llamacpp": "the same schemas, on the real llama.cpp",
}
"""Titles of the groups; a case's id begins with its group."""


def catalogue(canary_port: int) -> tuple[Case, ...]:
    """Return all cases; every name or redirect that could lead the gateway away leads to the canary's port."""
    return (
        *http_cases.CASES,
        *body_cases.CASES,
        *caller_cases.cases(canary_port),
        *stream_cases.CASES,
        *upstream_cases.cases(canary_port),
        *redis_cases.CASES,
        *schema_cases.cases(canary_port),
    )
