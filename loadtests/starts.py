"""Start the gateway many times, and check that each start becomes ready and scores its races.

``python -m loadtests.starts --count 50`` makes 50 starts with each of three sources of rewards: a remote server that
reads only text (so that a tokenizer is loaded), with one worker and with two, and a model in the gateway's process. The
exit code is 1 if a start was not ready in time, its first races were not scored, or a model was loaded twice.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import typer

from gateway.embedded.weights import minilm_folder, reward_adapter_folder
from gateway.telemetry import configure_logging
from loadtests.stack import Surroundings, gateway, machine, quiet_logs, surroundings
from loadtests.tables import write_result
from tests.stubs.process import StubProcess
from tests.tokenizers import save_chat_tokenizer

N = 2
OUT = Path("loadtests/results/starts.json")
_LOADED = "reward_model_loaded"
_READY_TIMEOUT_S = 180.0
_LOG_LINES = 5  # of a failed start


async def run(count: int) -> list[dict[str, Any]]:
    """Start each kind ``count`` times; print and return a row for each, and print each start that failed."""
    async with (
        surroundings(latency_ms=5) as around,
        StubProcess("tests.stubs.reward", dialect="vllm") as text_server,
    ):
        tokenizer = Path(around.folder, "tokenizer")
        save_chat_tokenizer(tokenizer)
        remote = {"GATEWAY_REWARD__URL": text_server.url, "GATEWAY_REWARD__TOKENIZER": str(tokenizer)}
        local = {
            "GATEWAY_REWARD__URL": "",
            "GATEWAY_REWARD__MODEL": str(minilm_folder()),
            "GATEWAY_REWARD__ADAPTER": str(reward_adapter_folder()),
            "GATEWAY_REWARD__DEVICE": "cpu",
            "GATEWAY_LOG_LEVEL": "info",
        }
        # Longer than a busy machine needs: this looks for starts that never become good, not for slow ones.
        local["GATEWAY_REWARD__TIMEOUT_S"] = remote["GATEWAY_REWARD__TIMEOUT_S"] = "60"
        kinds = {"remote, 1 worker": (1, remote), "remote, 2 workers": (2, remote), "local reward": (1, local)}
        return [await _repeat(name, count, around, workers, settings) for name, (workers, settings) in kinds.items()]


async def _repeat(
    name: str, count: int, around: Surroundings, workers: int, settings: Mapping[str, str]
) -> dict[str, Any]:
    failures, seconds = 0, []
    for number in range(1, count + 1):
        began = time.monotonic()
        try:
            failure = await _start(around, workers, settings)
        except RuntimeError as error:
            failure = str(error)
        lines = _log_lines(Path(around.folder))
        seconds.append(time.monotonic() - began)
        if not failure and (loaded := sum(_LOADED in line for line in lines)) > workers:
            failure = f"the model was loaded {loaded} times"
        if failure:
            failures += 1
            print(f"  {name}, start {number}: {failure}", *_troubles(lines), sep="\n    ", flush=True)
    good, median_s = count - failures, statistics.median(seconds)
    print(f"{name}: {good} of {count} ready and scored, {median_s:.1f} s each (median)", flush=True)
    return {"kind": name, "count": count, "good": good, "median_s": median_s}


def _log_lines(folder: Path) -> list[str]:
    return (folder / "gateway.log").read_text(errors="replace").splitlines()


def _troubles(lines: Sequence[str]) -> Sequence[str]:
    """Return a log's warnings and errors, or its last lines if it has none."""
    return [line for line in lines if '"level": "warning"' in line or '"level": "error"' in line] or lines[-_LOG_LINES:]


async def _start(around: Surroundings, workers: int, settings: Mapping[str, str]) -> str:
    """Start a gateway, send requests to each worker, and return the problem; empty if there was none."""
    async with (
        gateway(around, workers=workers, **settings) as running,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
    ):
        # One connection for each request: a hash of their addresses distributes connections to the workers.
        connections = 1 if workers == 1 else 6 * workers
        if not await _all_ready(session, running.gateway, connections):
            return "not ready in time"
        for _ in range(connections):
            body = {"model": "ratchet", "messages": [{"role": "user", "content": "hi"}], "best_of": N}
            async with session.post(f"{running.gateway}/v1/chat/completions", json=body) as response:
                answer = await response.json()
            if response.status != 200:
                return f"status {response.status}"
            if answer["best_of_n"]["scored"] != N:
                race = answer["best_of_n"]
                return f"{race['scored']} of {race['n']} answers scored: {race['selection']}, {race['scoring_error']}"
    return ""


async def _all_ready(session: aiohttp.ClientSession, url: str, connections: int) -> bool:
    """Wait until this many connections in a row find a ready worker; return whether they did in time."""
    deadline, in_a_row = time.monotonic() + _READY_TIMEOUT_S, 0
    while in_a_row < connections and time.monotonic() < deadline:
        async with session.get(f"{url}/health/ready") as response:
            in_a_row = in_a_row + 1 if response.status == 200 else 0
        if not in_a_row:
            await asyncio.sleep(0.1)
    return in_a_row == connections


def main(
    count: Annotated[int, typer.Option(min=1, help="Starts of each kind.")] = 50,
    out: Annotated[Path, typer.Option(help="The result, as JSON.")] = OUT,
) -> None:
    """Start the gateway COUNT times with each source of rewards."""
    quiet_logs()
    configure_logging("warning", "console")
    rows = asyncio.run(run(count))
    write_result(out, {"about": machine(), "starts": rows})
    raise typer.Exit(0 if all(row["good"] == row["count"] for row in rows) else 1)


if __name__ == "__main__":
    typer.run(main)
