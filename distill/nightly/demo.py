"""``make night``: the embedded stack, some traffic, and then a small, real night on this machine.

Traffic of the demo is in the same folder and counts too. A night that was killed is resumed.
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
_CLIENTS = 4  # enough to keep both replicas busy
_SENT_FILE = "asked"

# Settings of a night that takes minutes; variables of the environment override them.
_SMALL_NIGHT = {
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


def run_demo(console: Console, *, data_dir: Path = DATA_DIR, count: int = PROMPTS) -> int:
    """Run the demo; return the night's exit code.

    Args:
        console: Where progress is printed.
        data_dir: The embedded stack's folder; the night's folder is inside.
        count: Prompts to send before the night.

    Raises:
        GatewayError: The stack did not start.
        NightError: The gateway did not answer.
    """
    folder = data_dir.absolute() / "night"

    def show(text: str) -> None:
        console.print(text, style="dim", markup=False, highlight=False)

    with EmbeddedStack(data_dir, settings={"GATEWAY_POLICY__N": str(CANDIDATES)}, on_step=show) as stack:
        unfinished = [run for run in runs(folder / "runs")[-1:] if not run.finished]
        if unfinished:
            show(f"night {unfinished[0].id} is unfinished: it is resumed without new traffic")
        else:
            _send_prompts(stack.url, folder / _SENT_FILE, count, console)
        command = [sys.executable, "-m", "distill", "run"]
        code = run_child(command, environment(stack.environment, folder))
        show("stopping everything")
    return code


def environment(gateway: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of a night on a stack.

    Args:
        gateway: The stack's environment.
        folder: The night's folder.
    """
    folders = {name: str(folder / place) for name, place in _FOLDERS.items()}
    # The stack's replicas load adapters from this folder.
    fleet = {"DISTILL_PROMOTION__GGUF_DIR": str(folder.parent / "adapters")}
    return folders | fleet | _SMALL_NIGHT | dict(os.environ) | dict(gateway)


def _send_prompts(url: str, sent_file: Path, count: int, console: Console) -> None:
    """Send the shipped prompts that no earlier night sent, as any application would."""
    every = prompts.load()
    sent = int(sent_file.read_text()) if sent_file.exists() else 0
    chosen = [every[(sent + place) % len(every)].prompt for place in range(min(count, len(every)))]
    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key="unused",
        max_retries=10,  # a busy gateway answers with Retry-After
        timeout=600.0,
        http_client=openai.DefaultHttpxClient(trust_env=False),  # no proxy for calls to this machine
    )

    def send(prompt: str) -> None:
        client.chat.completions.create(
            model=_MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=MAX_TOKENS
        )

    with client, counting(console) as progress:
        bar = progress.add_task(f"sending prompts, best of {CANDIDATES}", total=len(chosen))
        with ThreadPoolExecutor(_CLIENTS) as clients:
            try:
                for _ in clients.map(send, chosen):
                    progress.advance(bar)
            except openai.OpenAIError as error:
                clients.shutdown(cancel_futures=True)
                raise NightError(f"the gateway did not answer: {type(error).__name__}") from error
    write_atomically(sent_file, str(sent + len(chosen)).encode())
