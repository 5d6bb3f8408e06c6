"""huggingface_hub's client against the stub: the behaviour that the gateway's adapter relies on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, UnknownError

from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub
from tests.test_stubs.conftest import QUESTION


@pytest.fixture
async def hub(stub: TgiStub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncInferenceClient]:
    monkeypatch.setenv("HF_TOKEN", "hf_the_users_own")
    async with AsyncInferenceClient(base_url=stub.url) as client:
        yield client


async def test_an_answer_with_an_empty_id_is_parsed(hub: AsyncInferenceClient) -> None:
    answer = await hub.chat_completion(QUESTION, model="tgi", seed=1, max_tokens=4)
    assert ("", "length", 4) == (answer.id, answer.choices[0].finish_reason, answer.usage.completion_tokens)


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
async def test_the_base_url_goes_with_or_without_v1(stub: TgiStub, suffix: str) -> None:
    async with AsyncInferenceClient(base_url=stub.url + suffix) as client:
        await client.chat_completion(QUESTION, model="tgi")
    assert "/v1/chat/completions" == stub.state.requests[-1].path


async def test_none_is_left_out_and_no_model_becomes_dummy(stub: TgiStub, hub: AsyncInferenceClient) -> None:
    answer = await hub.chat_completion(QUESTION, temperature=None, extra_body={"top_k": 3})
    body = stub.state.requests[-1].body
    assert "dummy" == answer.model
    assert (False, True) == (b"temperature" in body, b'"top_k":3' in body.replace(b" ", b""))


async def test_openais_json_schema_is_rewritten_to_tgis_shape(stub: TgiStub, hub: AsyncInferenceClient) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema}}
    await hub.chat_completion(QUESTION, model="tgi", response_format=form)
    sent = json.loads(stub.state.requests[-1].body)["response_format"]
    assert {"type": "json_object", "value": schema} == sent


async def test_an_error_frame_raises_unknown_error(hub: AsyncInferenceClient) -> None:
    stream: Any = await hub.chat_completion(QUESTION, model="tgi", stream=True, top_p=1.0)
    with pytest.raises(UnknownError) as caught:
        await anext(stream)
    assert 422 == caught.value.args[0]["http_status_code"]


@pytest.mark.parametrize("status", [429, 424, 500, 503])
async def test_an_error_status_raises_hf_hub_http_error(stub: TgiStub, hub: AsyncInferenceClient, status: int) -> None:
    stub.knobs.update({"fault": "status", "fault_status": status, "fault_next": 10})
    with pytest.raises(HfHubHTTPError) as caught:
        await hub.chat_completion(QUESTION, model="tgi")
    assert caught.value.response is not None
    assert status == caught.value.response.status_code


async def test_a_timeout_raises_inference_timeout_error(stub: TgiStub) -> None:
    stub.knobs.update({"fault": "hang", "fault_next": 1})
    async with AsyncInferenceClient(base_url=stub.url, timeout=0.1) as client:
        with pytest.raises(InferenceTimeoutError):
            await client.chat_completion(QUESTION, model="tgi")
    await stub.state.until(lambda state: state.generating == 0)


async def test_the_users_hf_token_leaks_to_the_backend(stub: TgiStub, hub: AsyncInferenceClient) -> None:
    await hub.chat_completion(QUESTION, model="tgi")
    assert "Bearer hf_the_users_own" == stub.state.requests[-1].headers["Authorization"]


async def test_an_empty_token_leaks_it_too(stub: TgiStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_the_users_own")
    async with AsyncInferenceClient(base_url=stub.url, token="") as client:
        await client.chat_completion(QUESTION, model="tgi")
    assert "Bearer hf_the_users_own" == stub.state.requests[-1].headers["Authorization"]


async def test_an_empty_authorization_header_prevents_it(stub: TgiStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_the_users_own")
    async with AsyncInferenceClient(base_url=stub.url, headers={"authorization": ""}) as client:
        await client.chat_completion(QUESTION, model="tgi")
    assert "" == stub.state.requests[-1].headers.get("Authorization", "")


async def test_cancelling_a_plain_call_ends_its_generation_at_once() -> None:
    async with TgiStub(Knobs(latency_ms=60_000)) as stub, AsyncInferenceClient(base_url=stub.url) as client:
        call = asyncio.create_task(client.chat_completion(QUESTION, model="tgi"))
        await stub.state.until(lambda state: state.generating == 1)
        call.cancel()
        await stub.state.until(lambda state: state.generating == 0)
        assert (1, 0, 0) == (stub.state.cancelled, stub.state.finished, stub.state.tokens_generated)


@pytest.mark.parametrize("how", ["cancel", "aclose"])
async def test_cancelling_or_closing_a_stream_ends_its_generation_at_once(how: str) -> None:
    knobs = Knobs(tokens_per_s=50, answer_tokens_min=1000, answer_tokens_max=1000)
    async with TgiStub(knobs) as stub, AsyncInferenceClient(base_url=stub.url) as client:
        stream = await client.chat_completion(QUESTION, model="tgi", stream=True)
        await anext(stream)
        assert 1 == stub.state.generating
        if how == "aclose":
            await stream.aclose()
        else:

            async def read_on() -> None:
                async for _ in stream:
                    pass

            reading = asyncio.create_task(read_on())
            await asyncio.sleep(0)
            reading.cancel()
        await stub.state.until(lambda state: state.generating == 0)
        assert 1 == stub.state.cancelled
        assert stub.state.tokens_generated < 1000


async def test_break_alone_leaves_the_generation_running() -> None:
    knobs = Knobs(tokens_per_s=200, answer_tokens_min=20, answer_tokens_max=20)
    async with TgiStub(knobs) as stub, AsyncInferenceClient(base_url=stub.url) as client:
        stream = await client.chat_completion(QUESTION, model="tgi", stream=True)
        async for _ in stream:
            break
        await stub.state.until(lambda state: state.generating == 0)
        assert (0, 1) == (stub.state.cancelled, stub.state.finished)
