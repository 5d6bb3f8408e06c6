"""TensorZero's embedded gateway (PyPI ``tensorzero``): best of N, then one more call to a judge."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from statistics import quantiles

from loadtests.peers.environment import python_of
from loadtests.stack import Measured

NAME = "TensorZero, embedded"
REQUIREMENT = "tensorzero==2026.6.0"


async def measure(backend: str, n: int, concurrency: int, seconds: float) -> Measured:
    """A closed loop on the stub.

    Raises:
        RuntimeError: It cannot be installed, or its client failed.
    """
    python = await python_of("tensorzero", REQUIREMENT)
    script = Path(__file__).parent / "tensorzero_client.py"
    # -P: this folder is no place to look for a package of the same name as a module here.
    # It would tell of every judge's word that it cannot use, and pay for that: we do not hold that against it.
    quiet = {**os.environ, "RUST_LOG": "off", "TENSORZERO_DISABLE_PSEUDONYMOUS_USAGE_ANALYTICS": "1"}
    command = (python, "-P", script, backend, str(n), str(concurrency), str(seconds))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=quiet)
    told, complaint = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{NAME} failed: {complaint.decode(errors='replace')[-500:]}")
    said = json.loads(told.splitlines()[-1])
    latencies_ms: list[float] = said["ms"]
    cuts = quantiles(latencies_ms, n=100)
    return Measured(concurrency, len(latencies_ms), cuts[49], cuts[98], len(latencies_ms) / said["elapsed_s"])
