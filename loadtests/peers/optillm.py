"""OptiLLM's ``bon`` (PyPI ``optillm``): N answers in one call, then the model rates each, one call after another."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from gateway.processes.child import free_port
from loadtests.peers.environment import python_of
from loadtests.peers.peer import Race, Result, over_http, serving

NAME = "OptiLLM, bon: the model rates its own answers"
REQUIREMENTS: tuple[str, ...] = ("optillm==0.4.0",)
# The packages that its server imports to serve bon. For all its dependencies (transformers, gradio, spaCy,
# bitsandbytes, …) pip searched twenty minutes, on a busy machine, for versions that fit together, and had found none.
_IMPORTED = (
    "aiohttp",
    "cerebras_cloud_sdk",
    "flask",
    "httpx",
    "math-verify",
    "networkx",
    "numpy",
    "openai<3",  # it hands openai a client of httpx, which later versions refuse
    "PyYAML",
    "requests",
    "sympy",
    "z3-solver==4.15.4.0",
)


def waits(n: int) -> int:
    """Return 1 + N: the answers together, then a rating of each."""
    return 1 + n


async def measure(race: Race) -> AsyncGenerator[Result]:
    """Measure it over HTTP, with logs off. Without a key of its caller's it keeps one client for all requests."""
    python = await python_of("optillm", *_IMPORTED, alone=REQUIREMENTS[0])
    port = free_port()
    settings = ("--approach", "bon", "--best-of-n", str(race.n), "--base-url", f"{race.backend}/v1", "--model", "tgi")
    command = (python.with_name("optillm"), "--port", str(port), "--log", "critical", *settings)
    async with serving(command, port, {"OPENAI_API_KEY": "unused"}) as pid:
        async for result in over_http(f"http://127.0.0.1:{port}", pid, race):
            yield result
