"""No log line and no error of a gateway process holds the text of a prompt or an answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson

from gateway.settings import RedisSettings
from tests.redis_server import RedisServer
from tests.stubs.knobs import Fault
from tests.stubs.reward import RewardFault, RewardStub
from tests.stubs.tgi import TgiStub

MARKER = "zyzzyva"
SAID = [{"role": "user", "content": f"What does a {MARKER} eat?"}]
TOOL = {"type": "function", "function": {"name": "look", "description": MARKER, "parameters": {"default": 2**70}}}


@asynccontextmanager
async def gateway_process(log: Path, **variables: str) -> AsyncIterator[str]:
    """Run ``python -m gateway serve``, which writes to ``log``; yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway", "serve"),
            env={**environment, **variables, "GATEWAY_PORT": str(port), "GATEWAY_LOG_LEVEL": "debug"},
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        async with asyncio.timeout(60), httpx2.AsyncClient(base_url=url, trust_env=False) as http:
            while process.returncode is None:
                try:
                    await http.get("/health/live")
                    break
                except httpx2.ConnectError:
                    await asyncio.sleep(0.05)
        yield url
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


def requests() -> list[dict[str, Any]]:
    """Return requests of every kind that hold the marker: good ones, and bad ones at every depth."""
    return [
        {"messages": SAID},
        {"messages": SAID, "stream": True},
        {"messages": SAID, "best_of": 1, "stream": True},
        {"messages": SAID, "user": MARKER, "metadata": {"a": MARKER}, "stop": [MARKER]},
        {"messages": [{"role": MARKER, "content": MARKER}]},
        {"messages": [{"role": "user", "content": {"text": MARKER}}]},
        {"messages": [{"role": "user", "content": [{"type": MARKER, "text": MARKER}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": [MARKER]}]}]},
        {"messages": [{"role": "tool", "content": MARKER}]},
        {"messages": SAID, "tools": [TOOL]},
        {"messages": SAID, "tool_choice": MARKER},
        {"messages": SAID, "response_format": {"type": MARKER}},
        {"messages": SAID, "response_format": {"type": "json_object", "schema": MARKER}},
        {"messages": SAID, "stop": [MARKER] * 9},
        {"messages": SAID, "temperature": MARKER, "n": MARKER, "seed": MARKER},
        {"messages": SAID, "prediction": {"type": "content", "content": MARKER}},
        {"messages": SAID, "reasoning_effort": MARKER},
        {"messages": [{"role": "user", "content": f"{MARKER} " * 5000}]},
        {"messages": SAID, "max_tokens": 100_000},
    ]


async def test_no_log_line_and_no_error_holds_a_prompt_or_an_answer(
    tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    log = tmp_path / "log"
    async with TgiStub() as tgi, RewardStub() as rewards:
        variables = {
            "GATEWAY_BACKEND__URLS": tgi.url,
            "GATEWAY_REWARD__URL": rewards.url,
            "GATEWAY_REDIS__URL": redis_settings.url,
            "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path / "spool"),
        }
        async with (
            gateway_process(log, **variables) as url,
            httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as http,
        ):
            statuses, answers = [], []
            for fault in (Fault.NONE, *Fault):
                healthy = fault in {Fault.NONE, Fault.HANG}  # a call that hangs sends nothing
                tgi.knobs.update({"fault": Fault.NONE if healthy else fault, "fault_probability": 1.0})
                rewards.knobs.update(
                    {"fault": RewardFault.NAN if fault is Fault.DRIP else RewardFault.NONE, "fault_probability": 1.0}
                )
                for fields in requests() if healthy else requests()[:3]:
                    response = await http.post("/v1/chat/completions", json={"model": "ratchet", **fields})
                    statuses.append(response.status_code)
                    if response.status_code != 200:
                        assert MARKER not in response.text
                    elif "stream" not in fields:
                        answers.append(response.json()["choices"][0]["message"]["content"])
            broken = json.dumps({"model": "ratchet", "messages": SAID}).encode()[:-2]
            response = await http.post(
                "/v1/chat/completions", content=broken, headers={"content-type": "application/json"}
            )
            assert (400, False) == (response.status_code, MARKER in response.text)
            await http.post("/v1/feedback", json={"id": "chatcmpl-" + "0" * 32, "rating": 1, "comment": MARKER})
    lines = log.read_text()
    assert {200, 400, 502} <= set(statuses)
    assert len(lines.splitlines()) > len(statuses)
    assert any(orjson.loads(line).get("event") == "completion" for line in lines.splitlines() if line[:1] == "{")
    assert MARKER not in lines
    assert [] == [answer for answer in answers if answer and answer[:24] in lines]
    assert "Traceback" not in lines
