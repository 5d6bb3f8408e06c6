"""The interface of a peer, and the two ways to measure one: as a library in a process of its own, or over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import aiohttp
import orjson

from loadtests.closed_loop import Measured, closed_loop
from loadtests.overhead import JSON, Load, client
from loadtests.stack import cpu_s

START_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Race:
    """The load for every peer: best of ``n`` on the backend, at each concurrency for some seconds."""

    backend: str
    n: int
    concurrencies: Sequence[int]
    seconds: float


Result = tuple[Measured, float]
"""A closed loop, and the CPU of the peer's process in ms for each request; a library's includes its callers."""


class Peer(Protocol):
    """A module of this package."""

    NAME: str
    REQUIREMENTS: tuple[str, ...]

    def waits(self, n: int) -> int:
        """Return how many times in sequence it waits for the model; anything beyond that is its own time."""
        ...

    def measure(self, race: Race) -> AsyncGenerator[Result]:
        """Yield one result for each concurrency.

        Raises:
            RuntimeError: It cannot be installed, does not start, or gives no answers.
        """
        ...


async def as_library(python: Path, module: str, race: Race, **environment: str) -> AsyncGenerator[Result]:
    """Run a module of this package with the peer's interpreter; it prints a line of JSON for each result.

    Raises:
        RuntimeError: It failed.
    """
    arguments = (race.backend, str(race.n), str(race.seconds), *map(str, race.concurrencies))
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            python,
            "-m",
            module,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environment},
        )
        assert process.stdout is not None
        try:
            async for line in process.stdout:
                result = json.loads(line)
                yield Measured(**result["measured"]), result["cpu_ms"]
            # Before any signal: sending one to a process that has just ended loses its exit status.
            status = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        if status != 0:
            raise RuntimeError(f"{module} ended with status {status}: {_log_tail(log)}")


@asynccontextmanager
async def serving(command: Sequence[str | Path], port: int, environment: Mapping[str, str]) -> AsyncIterator[int]:
    """Run the peer's server until the block ends; yield its process id once it listens.

    Raises:
        RuntimeError: It did not start.
    """
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        try:
            if not await _listens(process, port):
                raise RuntimeError(f"{command[0]} did not start (status {process.returncode}): {_log_tail(log)}")
            yield process.pid
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def over_http(url: str, pid: int, race: Race, **fields: object) -> AsyncGenerator[Result]:
    """Run closed loops on a server with OpenAI's protocol, by the client that also measures our gateway.

    Raises:
        RuntimeError: An answer is an error, has no text, or does not come.
    """
    async with client() as session:
        for concurrency in race.concurrencies:
            body = Load(race.n, concurrency, race.seconds).body("tgi", **fields)
            n_answered = 0

            async def call(body: bytes = body) -> None:
                nonlocal n_answered
                async with session.post(url + "/v1/chat/completions", data=body, headers=JSON) as response:
                    answer = await response.read()
                if response.status != 200 or not orjson.loads(answer)["choices"][0]["message"]["content"]:
                    raise RuntimeError(f"{url} answered {response.status}: {answer[:500].decode(errors='replace')}")
                n_answered += 1

            before_s = cpu_s(pid)
            try:
                measured = await closed_loop(call, concurrency=concurrency, seconds=race.seconds)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise RuntimeError(f"{url} at concurrency {concurrency}: {type(error).__name__}") from error
            yield measured, (cpu_s(pid) - before_s) * 1e3 / n_answered


async def _listens(process: asyncio.subprocess.Process, port: int) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + START_TIMEOUT_S
    while process.returncode is None and loop.time() < deadline:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.2)
        else:
            writer.close()
            return True
    return False


def _log_tail(log: BinaryIO) -> str:
    log.seek(0)
    return log.read()[-500:].decode(errors="replace")
