"""One run of Locust, as a process of its own: gevent does not work together with this process's event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtests.load.summary import Request, read

ROOT = Path(__file__).parents[2]
_STOP_S = 60


@dataclass(frozen=True, slots=True)
class Phase:
    """One run of Locust.

    Attributes:
        shape: ``closed`` (users who wait for their answers) or ``open`` (requests at a constant rate).
        load: Users of the closed loop; requests per second of the open one.
        seconds: Duration.
        best_of: N.
        max_tokens: Longest answer.
        long_prompt_words: Length of the long prompts.
    """

    shape: str
    load: float
    seconds: float
    best_of: int = 4
    max_tokens: int = 64
    long_prompt_words: int = 2000


async def run(url: str, phase: Phase, folder: Path) -> list[Request]:
    """Run a phase, and return every request.

    Raises:
        RuntimeError: Locust itself failed; with the end of its log.
    """
    out, log = folder / f"{phase.shape}.csv", folder / f"{phase.shape}.log"
    closed = phase.shape == "closed"
    users = round(phase.load) if closed else 1
    command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--exit-code-on-error", "0"]
    command += ["-f", str(Path(__file__).parent / ("users.py" if closed else "constant_rate.py")), "--host", url]
    command += ["--users", str(users), "--spawn-rate", str(max(1, users // 5))]
    command += ["--run-time", f"{phase.seconds:g}s", "--stop-timeout", str(_STOP_S)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LOAD_OUT": str(out),
        "LOAD_RATE": str(phase.load),
        "LOAD_BEST_OF": str(phase.best_of),
        "LOAD_MAX_TOKENS": str(phase.max_tokens),
        "LOAD_LONG_PROMPT_WORDS": str(phase.long_prompt_words),
    }
    with log.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=sink, stderr=sink)
        try:
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if status != 0 or not out.exists():
        raise RuntimeError(f"locust ended with status {status}: {log.read_text()[-2000:]}")
    return read(out)
