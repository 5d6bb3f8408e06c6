"""its_hub's best of N (PyPI ``its_hub``), a library: N draws side by side, then as many calls to a judge."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from loadtests.peers.environment import python_of
from loadtests.peers.peer import Race, Result, as_library

NAME = "its_hub, library: best of N by a judge"
REQUIREMENTS: tuple[str, ...] = ("its_hub[iaas]==1.2.0",)


def waits(n: int) -> int:
    """Return 2: the draws together, then the judge's calls together."""
    return 2


async def measure(race: Race) -> AsyncGenerator[Result]:
    """Measure it as a library, without HTTP."""
    python = await python_of("its_hub", *REQUIREMENTS)
    async for result in as_library(python, "loadtests.peers.its_hub_client", race):
        yield result
