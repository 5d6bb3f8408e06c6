"""A peer's own virtual environment: what it depends on never meets what this project depends on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

PEERS_DIR = Path("data/peers")
INSTALL_TIMEOUT_S = 15 * 60.0


async def python_of(name: str, *requirements: str, alone: str = "") -> Path:
    """The interpreter of the peer's environment, made and filled when it is not there yet.

    Args:
        name: The environment's.
        requirements: What is installed, with what it depends on.
        alone: A package that is installed without what it depends on.

    Raises:
        RuntimeError: It could not be installed; with pip's last words.
    """
    folder = PEERS_DIR / name
    done = folder / " ".join(filter(None, (alone, *requirements)))
    python = folder / "bin" / "python"
    if not done.exists():
        # Without a pip of its own, which would take as long to install as most peers: ours serves.
        await _run(sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder))
        pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--no-input", "--quiet")
        await _run(*pip, *requirements)
        if alone:
            await _run(*pip, "--no-deps", alone)
        done.touch()
    return python


async def _run(*command: str) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=pipe)
    try:
        async with asyncio.timeout(INSTALL_TIMEOUT_S):
            _, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        raise RuntimeError(f"{' '.join(command)}: not done after {INSTALL_TIMEOUT_S / 60:g} minutes") from None
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {complaint.decode(errors='replace')[-500:]}")
