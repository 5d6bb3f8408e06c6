"""The reward server from its start to its end, and clients that end before it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx2
import pytest

from gateway.errors import SettingsError
from gateway.processes.child import free_port
from gateway.reward import server
from gateway.settings import RewardSettings, Settings
from tests.gateway.reward.fake_model import FakeModel
from tests.gateway.reward.served import Start, status_and_message, turns
from tests.waiting import until

START = """
from gateway.reward.server import serve
from gateway.settings import load
serve(load())
"""


async def test_answers_of_a_client_that_hangs_up_are_dropped(start: Start) -> None:
    model = FakeModel()
    model.gate.clear()
    served = await start(model)
    running = asyncio.create_task(served.classify(input="one"))
    await asyncio.to_thread(model.begun.wait, 30)
    leaving = asyncio.create_task(served.classify(input=["two", "three"]))
    await until(lambda: served.scorer.waiting == 2)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await until(lambda: served.scorer.waiting == 0)
    model.gate.set()
    assert 200 == (await running).status_code
    assert [1] == model.batches


async def test_a_client_that_hangs_up_within_its_body_is_only_counted(start: Start) -> None:
    served = await start(FakeModel())
    host, port = served.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"input"')
    await writer.drain()
    writer.close()
    await until(lambda: b'calls_total{status="499"} 1.0' in served.metrics.render(0)[0])


async def test_while_the_model_loads_every_route_answers_503_with_the_reason(start: Start, tmp_path: Path) -> None:
    served = await start(folder=str(tmp_path), loaded=False)
    with pytest.raises(SettingsError):
        await served.scorer.loaded()
    for response in (
        await served.http.get("/health"),
        await served.http.get("/v1/models"),
        await served.classify(input="one"),
    ):
        status, message = status_and_message(response)
        assert 503 == status
        assert "could not be loaded" in message


async def test_a_stopping_server_finishes_running_calls(start: Start) -> None:
    model = FakeModel()
    model.gate.clear()
    served = await start(model)
    answering = asyncio.create_task(served.classify(input="one"))
    await asyncio.to_thread(model.begun.wait, 30)
    served.uvicorn.should_exit = True
    await until(lambda: not served.uvicorn.servers[0].is_serving())
    model.gate.set()
    assert 200 == (await answering).status_code


async def test_its_own_process_serves_until_sigterm(minilm: str, adapter: Path) -> None:
    port = free_port()
    process = await _process(MODEL=minilm, ADAPTER=str(adapter), DEVICE="cpu", PORT=str(port))
    try:
        async with asyncio.timeout(120), httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            while not await _healthy(http):
                await asyncio.sleep(0.05)
            assert 200 == (await http.post("/classify", json={"input": turns("hi", "hello")})).status_code
            process.send_signal(signal.SIGTERM)
            assert await process.wait() in {0, -signal.SIGTERM}
    finally:
        if process.returncode is None:
            process.kill()


async def test_serving_ends_with_the_reason_when_the_model_cannot_be_loaded(tmp_path: Path) -> None:
    settings = Settings(reward=RewardSettings(model=str(tmp_path), port=0))
    with pytest.raises(SettingsError, match="cannot be loaded"):
        await asyncio.to_thread(server.serve, settings)


def test_without_a_local_model_there_is_nothing_to_serve() -> None:
    with pytest.raises(SettingsError, match="GATEWAY_REWARD__MODEL"):
        server.serve(Settings())


def test_listening_beyond_loopback_needs_a_key() -> None:
    with pytest.raises(ValueError, match="GATEWAY_REWARD__API_KEY"):
        RewardSettings(model="fake", host="0.0.0.0")
    assert "0.0.0.0" == RewardSettings(model="fake", host="0.0.0.0", api_key="key").host


async def _process(**settings: str) -> asyncio.subprocess.Process:
    environment = {f"GATEWAY_REWARD__{name}": value for name, value in settings.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return await asyncio.create_subprocess_exec(sys.executable, "-c", START, env=environment)


async def _healthy(http: httpx2.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx2.TransportError:
        return False
