"""A peer's own virtual environment: what it depends on never meets what this project depends on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

PEERS_DIR = Path("data/peers")


async def python_of(name: str, requirement: str) -> Path:
    """The interpreter of the peer's environment, made and filled when it is not there yet.

    Raises:
        RuntimeError: It could not be installed; with pip's last words.
    """
    folder = PEERS_DIR / name
    done = folder / requirement
    python = folder / "bin" / "python"
    if not done.exists():
        await _run(sys.executable, "-m", "venv", "--clear", str(folder))
        await _run(str(python), "-m", "pip", "install", "--no-input", "--quiet", requirement)
        done.touch()
    return python


async def _run(*command: str) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=pipe)
    _, complaint = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {complaint.decode(errors='replace')[-500:]}")
