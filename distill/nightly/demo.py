"""A whole night on this machine: the embedded stack, some traffic, and then the night as an operator would run it.

Small and real. What the demo logged is in the same folder and counts as well; a night that was killed goes on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
from rich.console import Console

from distill.errors import NightError
from distill.progress import counting
from distill.run_dir import runs
from gateway.demo import prompts
from gateway.embedded.stack import DATA_DIR, EmbeddedStack
from gateway.files import write_atomically
from gateway.processes.child import run_child

PROMPTS = 120
CANDIDATES = 4
MAX_TOKENS = 96

_MODEL = "ratchet"
_CLIENTS = 4  # so that both replicas always have something to draw
_ASKED_FILE = "asked"

# Settings of a night that is done in minutes; what is set outside comes first.
_SMALL = {
    "DISTILL_DATASET__HELD_OUT_SHARE": "0.25",
    "DISTILL_TRAINING__CHECKPOINTS": "1",
    "DISTILL_TRAINING__EPOCHS": "2",
    "DISTILL_TRAINING__BATCH_EXAMPLES": "8",
    "DISTILL_EVALUATION__DRAWS": str(CANDIDATES),
    "DISTILL_EVALUATION__TEMPERATURES": "0.4,0.7",
    "DISTILL_EVALUATION__MAX_TOKENS": str(MAX_TOKENS),
    "DISTILL_EVALUATION__OWN_SERVERS": "2",
    "DISTILL_NIGHT__MIN_EXAMPLES": "16",
}
_FOLDERS = {
    "DISTILL_DATASET__ARCHIVE_DIR": "archive",
    "DISTILL_EVALUATION__DRAWS_DIR": "draws",
    "DISTILL_PROMOTION__ADAPTERS_DIR": "adapters",
    "DISTILL_PROMOTION__GUARD_FILE": "guard.json",
    "DISTILL_NIGHT__RUNS_DIR": "runs",
}


def main(console: Console, *, data_dir: Path = DATA_DIR, count: int = PROMPTS) -> int:
    """Run it; returns the night's exit code.

    Args:
        console: Where to tell what happens.
        data_dir: The embedded stack's folder; the night's own is in it.
        count: Prompts to ask before the night.

    Raises:
        GatewayError: The stack did not start.
        NightError: The gateway did not answer.
    """
    folder = data_dir.absolute() / "night"

    def say(step: str) -> None:
        console.print(step, style="dim", markup=False, highlight=False)

    with EmbeddedStack(data_dir, settings={"GATEWAY_POLICY__N": str(CANDIDATES)}, on_step=say) as stack:
        unfinished = [run for run in runs(folder / "runs")[-1:] if not run.finished]
        if unfinished:
            say(f"the night {unfinished[0].id} was broken off: it goes on, without new traffic")
        else:
            _ask(stack.url, folder / _ASKED_FILE, count, console)
        command = [sys.executable, "-m", "distill", "run"]
        code = run_child(command, environment(stack.environment, folder))
        say("stopping everything")
    return code


def environment(gateway: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The variables of a night on a stack.

    Args:
        gateway: The stack's own.
        folder: Of everything that the night keeps.
    """
    folders = {name: str(folder / place) for name, place in _FOLDERS.items()}
    fleet = {
        "DISTILL_PROMOTION__GGUF_DIR": str(folder.parent / "adapters")
    }  # where the stack's replicas take them from
    return folders | fleet | _SMALL | dict(os.environ) | dict(gateway)


def _ask(url: str, asked_file: Path, count: int, console: Console) -> None:
    """Ask the shipped prompts that no earlier night asked, as any application would."""
    every = prompts.load()
    asked = int(asked_file.read_text()) if asked_file.exists() else 0
    chosen = [every[(asked + place) % len(every)].prompt for place in range(min(count, len(every)))]
    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="unused",
        max_retries=10,  # on a busy machine the gateway asks to come back later
        timeout=600.0,
        http_client=openai.DefaultHttpxClient(trust_env=False),  # no proxy stands before this machine itself
    )

    def ask(prompt: str) -> None:
        client.chat.completions.create(
            model=_MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS
        )

    with client, counting(console) as progress:
        bar = progress.add_task(f"asking the gateway, best of {CANDIDATES}", total=len(chosen))
        with ThreadPoolExecutor(_CLIENTS) as clients:
            try:
                for _ in clients.map(ask, chosen):
                    progress.advance(bar)
            except openai.OpenAIError as error:
                clients.shutdown(cancel_futures=True)
                raise NightError(f"the gateway did not answer: {type(error).__name__}") from error
    write_atomically(asked_file, str(asked + len(chosen)).encode())
