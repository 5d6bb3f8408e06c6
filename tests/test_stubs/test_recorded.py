"""Each stub answers as the real server did when its answers were recorded."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.stubs import replay
from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub
from tests.stubs.vllm import VllmKnobs, VllmStub

# How the recorded router was started, where a row's name does not say otherwise.
TGI = {"model_id": "model", "max_input_tokens": 2047, "max_total_tokens": 2048}
TGI_STARTED: dict[str, dict[str, Any]] = {
    "no key": {"api_key": "secret"},
    "wrong key": {"api_key": "secret"},
    "info without key": {"api_key": "secret"},
    "overloaded": {"max_concurrent_requests": 0},
    "overloaded stream": {"max_concurrent_requests": 0},
}
AFTER_A_DEATH = "health after the recursive "


def named(rows: list[dict[str, Any]]) -> Any:
    return [pytest.param(row, id=row["name"]) for row in rows]


@pytest.mark.parametrize("row", named([row for row in replay.rows("tgi") if not row["name"].startswith(AFTER_A_DEATH)]))
async def test_the_stub_of_tgi_answers_as_its_real_router_did(row: dict[str, Any]) -> None:
    knobs = Knobs(**{**TGI, **TGI_STARTED.get(row["name"], {})})
    async with TgiStub(knobs) as stub, aiohttp.ClientSession() as http:
        assert [] == replay.differences(row, await replay.ask(http, stub.url, row["request"]))


VLLM_STARTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tool_parser": True},
    "reasoning": {"reasoning_parser": True},
    "keyed": {"api_key": "secret"},
    "reward": {"pooling": True},
}


@pytest.mark.parametrize("row", named(list(replay.rows("vllm"))))
async def test_the_stub_of_vllm_answers_as_its_real_front_end_did(row: dict[str, Any]) -> None:
    knobs = VllmKnobs(**VLLM_STARTED[row["server"]])
    async with VllmStub(knobs) as stub, aiohttp.ClientSession() as http:
        assert [] == replay.differences(row, await replay.ask(http, stub.url, row["request"]))
