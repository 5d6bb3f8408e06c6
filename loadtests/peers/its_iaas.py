"""its_hub's own gateway, ``its-iaas``. It serves self-consistency only: N draws and a vote, no reward and no judge."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from gateway.processes.child import free_port
from loadtests.overhead import client
from loadtests.peers import its_hub
from loadtests.peers.environment import python_of
from loadtests.peers.peer import Race, Result, over_http, serving

NAME = "its_hub, its-iaas: N draws and a vote"
REQUIREMENTS = its_hub.REQUIREMENTS


def waits(n: int) -> int:
    """Return 1: the draws together."""
    return 1


async def measure(race: Race) -> AsyncGenerator[Result]:
    """Measure it over HTTP. It votes on whole answers: the pattern matches all of each."""
    python = await python_of("its_hub", *REQUIREMENTS)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = (python.with_name("its-iaas"), "--port", str(port), "--log-level", "CRITICAL")
    settings = {"endpoint": f"{race.backend}/v1", "api_key": "unused", "model": "tgi", "alg": "self-consistency"}
    async with serving(command, port, {}) as pid:
        async with client() as session:
            configured = await session.post(url + "/configure", json={**settings, "regex_patterns": ["(?s)(.*)"]})
            if configured.status != 200:
                raise RuntimeError(f"its-iaas refuses its settings: {await configured.text()}")
        async for result in over_http(url, pid, race, budget=race.n):
            yield result
