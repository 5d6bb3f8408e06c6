"""TensorZero's embedded gateway (PyPI ``tensorzero``): best of N, then one more call to a judge."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from loadtests.peers.environment import python_of
from loadtests.peers.peer import Race, Result, as_library

NAME = "TensorZero, embedded: best of N by a judge"
REQUIREMENTS: tuple[str, ...] = ("tensorzero==2026.6.0",)

# It would log every answer of the judge that it cannot use, which costs time that we do not want to count.
_QUIET = {"RUST_LOG": "off", "TENSORZERO_DISABLE_PSEUDONYMOUS_USAGE_ANALYTICS": "1"}


def waits(n: int) -> int:
    """Return 2: the draws together, then the judge once."""
    return 2


async def measure(race: Race) -> AsyncGenerator[Result]:
    """Measure it as a library, its fastest form: no HTTP, and nothing stored."""
    python = await python_of("tensorzero", *REQUIREMENTS)
    async for result in as_library(python, "loadtests.peers.tensorzero_client", race, **_QUIET):
        yield result
