"""TensorZero's embedded gateway (PyPI ``tensorzero``): best of N, then one more call to a judge."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from loadtests.peers.environment import python_of
from loadtests.peers.peer import Race, Result, as_library

NAME = "TensorZero, embedded: best of N by a judge"
REQUIREMENTS: tuple[str, ...] = ("tensorzero==2026.6.0",)

# It would tell of every judge's word that it cannot use, and pay for that: we do not hold that against it.
_QUIET = {"RUST_LOG": "off", "TENSORZERO_DISABLE_PSEUDONYMOUS_USAGE_ANALYTICS": "1"}


def waits(n: int) -> int:
    """The draws together, then the judge once."""
    return 2


async def measure(race: Race) -> AsyncGenerator[Result]:
    """As a library, its fastest form: no HTTP before it, and nothing stored."""
    python = await python_of("tensorzero", *REQUIREMENTS)
    async for result in as_library(python, "loadtests.peers.tensorzero_client", race, **_QUIET):
        yield result
