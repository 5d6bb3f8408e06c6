"""CPU of one draw in the gateway: the hub's client as it comes, as the gateway uses it, and bare aiohttp.

Every client calls the same stub, which runs in a process of its own and answers at once with 128 tokens; the rounds
are interleaved, so that other work on the machine affects all of them alike.

    python -m loadtests.backend_client [--calls 300] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import orjson
import uvloop
from huggingface_hub import AsyncInferenceClient

from gateway.backend.pool import BackendPool
from gateway.settings import BackendSettings
from gateway.types import Message, Prompt, Sampling

ANSWER_TOKENS = 128
MESSAGES: list[Message] = [{"role": "user", "content": "Why is the sky blue? Answer in two sentences. " * 8}]


@dataclass
class Contender:
    """A way to call the backend: ``call`` makes one plain draw, ``stream`` one streamed draw, each with a seed."""

    name: str
    call: Callable[[int], Awaitable[object]]
    stream: Callable[[int], Awaitable[object]]
    call_ms: list[float] = field(default_factory=list)
    chunk_us: list[float] = field(default_factory=list)


@asynccontextmanager
async def hub_contender(name: str, url: str) -> AsyncIterator[Contender]:
    """Open the hub's client as it comes."""
    async with AsyncInferenceClient(base_url=url, token="unused", timeout=60) as hub:

        async def call(seed: int) -> object:
            return await hub.chat_completion(MESSAGES, model="tgi", seed=seed, max_tokens=ANSWER_TOKENS)

        async def stream(seed: int) -> object:
            chunks = await hub.chat_completion(MESSAGES, model="tgi", seed=seed, max_tokens=ANSWER_TOKENS, stream=True)
            return [chunk async for chunk in chunks]

        yield Contender(name, call, stream)


@asynccontextmanager
async def gateway_contender(name: str, url: str) -> AsyncIterator[Contender]:
    """Open the gateway's backend: the hub's client over aiohttp, with answers parsed by the gateway."""
    prompt = Prompt(MESSAGES, Sampling(max_tokens=ANSWER_TOKENS))
    async with BackendPool(BackendSettings(urls=(url,))) as pool:

        async def call(seed: int) -> object:
            return await pool.complete(prompt, seed=seed, replica=0)

        async def stream(seed: int) -> object:
            return [delta async for delta in pool.stream(prompt, seed=seed, replica=0)]

        yield Contender(name, call, stream)


@asynccontextmanager
async def aiohttp_contender(name: str, url: str) -> AsyncIterator[Contender]:
    """Open the lower bound: aiohttp and orjson by hand, nothing checked."""
    address = url + "/v1/chat/completions"
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(auto_decompress=False, headers=headers) as session:

        def body(seed: int, *, stream: bool) -> bytes:
            fields = {"model": "tgi", "messages": MESSAGES, "max_tokens": ANSWER_TOKENS, "seed": seed}
            return orjson.dumps(fields | ({"stream": True} if stream else {}))

        async def call(seed: int) -> object:
            async with session.post(address, data=body(seed, stream=False)) as response:
                return orjson.loads(await response.read())

        async def stream(seed: int) -> object:
            async with session.post(address, data=body(seed, stream=True)) as response:
                return [orjson.loads(line[6:]) async for line in response.content if line.startswith(b"data: {")]

        yield Contender(name, call, stream)


async def measure(url: str, calls: int, rounds: int) -> list[Contender]:
    """Measure this process's CPU for a plain call and for a streamed chunk, one figure for each round."""
    async with AsyncExitStack() as stack:
        contenders = [
            await stack.enter_async_context(contender)
            for contender in (
                hub_contender("hub client as it comes (httpx2)", url),
                gateway_contender("gateway.backend (hub client, trimmed)", url),
                aiohttp_contender("bare aiohttp", url),
            )
        ]
        for contender in contenders:
            await contender.call(0)
            await contender.stream(0)
        for _ in range(rounds):
            for contender in contenders:
                started = time.process_time()
                for seed in range(calls):
                    await contender.call(seed)
                contender.call_ms.append((time.process_time() - started) / calls * 1e3)
                streams = max(1, calls // 20)
                started = time.process_time()
                for seed in range(streams):
                    await contender.stream(seed)
                contender.chunk_us.append((time.process_time() - started) / (streams * ANSWER_TOKENS) * 1e6)
        return contenders


def main() -> None:
    """Start the stub, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="plain calls a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tokens = str(ANSWER_TOKENS)
    command = [sys.executable, "-m", "tests.stubs.tgi", "--until-stdin-closes", "--answer-tokens-min", tokens]
    with subprocess.Popen(
        [*command, "--answer-tokens-max", tokens], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stub:
        assert stub.stdout is not None
        url = stub.stdout.readline().strip()
        contenders = uvloop.run(measure(url, arguments.calls, arguments.rounds))
        assert stub.stdin is not None
        stub.stdin.close()
    print(f"{'median (least) CPU, ' + tokens + ' tokens an answer':<40} {'ms a plain call':>20} {'µs a chunk':>20}")
    for contender in contenders:
        call, chunk = contender.call_ms, contender.chunk_us
        calls_cell = f"{statistics.median(call):.2f} ({min(call):.2f})"
        chunk_cell = f"{statistics.median(chunk):.0f} ({min(chunk):.0f})"
        print(f"{contender.name:<40} {calls_cell:>20} {chunk_cell:>20}")


if __name__ == "__main__":
    main()
