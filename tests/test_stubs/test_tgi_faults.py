"""The stub's failures and knobs."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.stubs.knobs import Fault, Knobs
from tests.stubs.process import StubProcess
from tests.stubs.tgi import TgiStub
from tests.test_stubs.conftest import QUESTION, Ask
from tests.test_stubs.test_tgi_streams import events_of

BODY = {"messages": QUESTION, "seed": 1}


@pytest.mark.parametrize(
    ("status", "error_type"),
    [(500, "incomplete_generation"), (424, "generation"), (429, "overloaded"), (503, "healthcheck")],
)
async def test_a_status_comes_with_tgis_body(stub: TgiStub, ask: Ask, status: int, error_type: str) -> None:
    stub.knobs.update({"fault": "status", "fault_status": status, "fault_next": 1})
    answered, body = await ask()
    assert (status, error_type) == (answered, body["error_type"])
    assert (200, 1, 1) == ((await ask())[0], stub.state.failed, stub.state.finished)


async def test_a_status_that_tgi_never_sends_comes_without_a_body(stub: TgiStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.update({"fault": "status", "fault_status": 502, "fault_next": 1})
    async with http.post("/v1/chat/completions", json=BODY) as response:
        assert (502, b"") == (response.status, await response.read())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "content_type"),
    [("html", 502, "text/html"), ("half_json", 200, ""), ("empty", 200, ""), ("garbage", 200, "")],
)
async def test_a_body_can_be_anything_but_an_answer(
    stub: TgiStub, http: aiohttp.ClientSession, fault: str, status: int, content_type: str, stream: bool
) -> None:
    stub.knobs.update({"fault": fault, "fault_status": 502, "fault_next": 1, "fault_after_tokens": 1})
    async with http.post("/v1/chat/completions", json={**BODY, "stream": stream}) as response:
        expected = content_type or ("text/event-stream" if stream else "application/json")
        assert (status, expected) == (response.status, response.content_type)
        body = await response.read()
        assert (fault == "empty") == (body == b"")
        assert b"[DONE]" not in body


async def test_an_error_frame_comes_after_some_tokens_and_a_plain_call_gets_424(stub: TgiStub, ask: Ask) -> None:
    stub.knobs.update({"fault": "error_frame", "fault_after_tokens": 3, "fault_probability": 1})
    status, text = await ask(stream=True)
    *tokens, frame = events_of(text)
    assert (200, 3, 422) == (status, len(tokens), frame["error"]["http_status_code"])
    assert (424, "generation") == ((await ask())[0], (await ask())[1]["error_type"])
    assert (3, 9) == (stub.state.failed, stub.state.tokens_generated)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_disconnect_breaks_the_answer_off_in_its_middle(
    stub: TgiStub, http: aiohttp.ClientSession, stream: bool
) -> None:
    stub.knobs.update({"fault": "disconnect", "fault_after_tokens": 3, "fault_next": 1})
    async with http.post("/v1/chat/completions", json={**BODY, "stream": stream}) as response:
        received = await response.content.readany()
        with pytest.raises(aiohttp.ClientPayloadError):
            received += await response.content.read()
    assert received
    assert b"[DONE]" not in received
    assert (1, 0, 0) == (stub.state.failed, stub.state.generating, stub.state.finished)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hanging_call_ends_only_when_its_client_leaves(
    stub: TgiStub, http: aiohttp.ClientSession, stream: bool
) -> None:
    stub.knobs.update({"fault": "hang", "fault_next": 1, "keep_alive_s": 0.01})

    async def read() -> None:
        async with http.post("/v1/chat/completions", json={**BODY, "stream": stream}) as response:
            await response.read()

    call = asyncio.create_task(read())
    await stub.state.until(lambda state: state.generating == 1)
    call.cancel()
    await stub.state.until(lambda state: state.generating == 0)
    assert (1, 0) == (stub.state.cancelled, stub.state.tokens_generated)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_drip_is_a_whole_answer_in_small_pieces(stub: TgiStub, ask: Ask, stream: bool) -> None:
    whole = await ask(seed=1, stream=stream, max_tokens=2)
    stub.knobs.update({"fault": "drip", "fault_next": 1, "drip_interval_ms": 0})
    assert whole == await ask(seed=1, stream=stream, max_tokens=2)
    assert 2 == stub.state.finished


async def test_one_of_n_fails_by_turn_or_by_seed(stub: TgiStub, ask: Ask) -> None:
    stub.knobs.update({"fault": "status", "fault_every": 4})
    assert [200, 200, 200, 500] * 2 == [(await ask())[0] for _ in range(8)]
    stub.knobs.update({"fault_every": 0, "fault_seed_modulo": 4, "fault_seed_remainder": 1})
    assert [200, 500, 200, 200] == [(await ask(seed=seed))[0] for seed in range(4)]
    stub.knobs.update({"fault_seed_modulo": 0, "fault_probability": 0.5})
    assert {200, 500} == {(await ask())[0] for _ in range(32)}


async def test_requests_are_recorded_with_their_headers(stub: TgiStub, http: aiohttp.ClientSession) -> None:
    stub.knobs.record_requests = 1
    for token in ("Bearer one", "Bearer two"):
        await http.post("/v1/chat/completions", json=BODY, headers={"Authorization": token})
    async with http.get("/_stub/state") as response:
        state = await response.json()
    assert ["Bearer two"] == [request["headers"]["authorization"] for request in state["requests"]]
    assert (2, 0) == (state["finished"], state["generating"])


@pytest.mark.parametrize("changes", [{"no_such": 1}, {"latency_ms": "fast"}, {"fault": "no_such"}, {"healthy": 1}])
async def test_an_unknown_or_mistyped_knob_is_refused(http: aiohttp.ClientSession, changes: dict[str, Any]) -> None:
    async with http.post("/_stub/knobs", json=changes) as response:
        assert 400 == response.status


async def test_a_stopped_stub_breaks_connections_and_comes_back_at_the_same_url() -> None:
    stub = TgiStub(Knobs(fault=Fault.HANG, fault_next=1))
    await stub.start()
    async with aiohttp.ClientSession(stub.url) as http:
        call = asyncio.create_task(http.post("/v1/chat/completions", json=BODY))
        await stub.state.until(lambda state: state.generating == 1)
        await stub.stop()
        with pytest.raises(aiohttp.ClientConnectionError):
            await call
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("/health")
        await stub.start()
        async with http.get("/health") as response:
            assert 200 == response.status
    await stub.stop()
    await stub.stop()


async def test_a_child_process_takes_knobs_on_its_command_line_and_at_run_time() -> None:
    async with StubProcess(adapters=["rft-1", "rft-2"], latency_ms=1, healthy=True) as stub:
        await stub.set_knobs(fault="status", fault_next=1)
        async with aiohttp.ClientSession(stub.url) as http:
            statuses = [(await http.post("/v1/chat/completions", json=BODY)).status for _ in range(2)]
        assert [500, 200] == statuses
        state = await stub.state()
        assert (1, 1) == (state["finished"], state["failed"])


def test_a_child_process_that_cannot_start_says_so() -> None:
    with pytest.raises(RuntimeError, match="status 2"):
        StubProcess(no_such_knob=1).start()
