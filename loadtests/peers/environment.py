"""A peer's own virtual environment: its dependencies never meet this project's."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

PEERS_DIR = Path("data/peers")
INSTALL_TIMEOUT_S = 15 * 60.0


async def python_of(name: str, *requirements: str, alone: str = "") -> Path:
    """Return the interpreter of the peer's environment; make and fill the environment if it does not exist.

    Args:
        name: The environment's name.
        requirements: Packages to install with their dependencies.
        alone: A package to install without its dependencies.

    Raises:
        RuntimeError: It could not be installed; with pip's last words.
    """
    folder = PEERS_DIR / name
    done = folder / " ".join(filter(None, (alone, *requirements)))
    python = folder / "bin" / "python"
    if not done.exists():
        # Without a pip of its own, which takes as long to install as most peers: ours installs into it.
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
