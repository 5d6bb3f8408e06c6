"""The official Python client, its answers validated strictly, against a whole gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest
from huggingface_hub import InferenceClient
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam

from gateway.api.keyfile import new_key
from tests.redis_server import RedisServer
from tests.serving import Serve, Served
from tests.stubs.knobs import Fault, Knobs

USER: ChatCompletionMessageParam = {"role": "user", "content": "What floats on the harbour?"}
WEATHER: ChatCompletionToolUnionParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}

Connect = Callable[..., AsyncOpenAI]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make clients of a gateway that retry nothing, and close them."""
    clients = []

    def make(served: Served, **options: Any) -> AsyncOpenAI:
        clients.append(
            AsyncOpenAI(
                base_url=f"{served.url}/v1",
                http_client=DefaultAsyncHttpxClient(trust_env=False),
                _strict_response_validation=True,
                **{"api_key": "any", "max_retries": 0, **options},
            )
        )
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


async def test_a_plain_answer(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    answer = await client.chat.completions.create(model="ratchet", messages=[USER], extra_body={"best_of": 3})
    assert answer.choices[0].message.content
    assert (answer.object, answer.choices[0].finish_reason) == ("chat.completion", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model_extra is not None
    assert (answer.model_extra["best_of_n"]["n"], answer.model_extra["best_of_n"]["selection"]) == (3, "scored")


async def test_the_races_facts_are_headers_of_the_raw_response(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    raw = await client.chat.completions.with_raw_response.create(
        model="ratchet", messages=[USER], extra_headers={"X-Best-Of": "4", "X-Request-Id": "mine"}
    )
    assert (raw.headers["x-bon-n"], raw.headers["x-bon-selection"]) == ("4", "scored")
    assert float(raw.headers["x-bon-reward"]) <= 8
    assert raw.request_id == "mine"
    assert raw.parse().choices[0].message.content


@pytest.mark.parametrize("best_of", [1, 4])
async def test_a_stream_is_read_to_its_end(serve: Serve, connect: Connect, best_of: int) -> None:
    client = connect(await serve())
    extra = {"best_of": best_of}
    whole = await client.chat.completions.create(model="ratchet", messages=[USER], seed=3, extra_body=extra)
    stream = await client.chat.completions.create(
        model="ratchet",
        messages=[USER],
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=extra,
    )
    chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [None] * (len(choices) - 1) + ["stop"] == [choice.finish_reason for choice in choices]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [None] * (len(chunks) - 1) + [whole.usage] == [chunk.usage for chunk in chunks]


async def test_a_stream_without_usage_has_none(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    stream = await client.chat.completions.create(model="ratchet", messages=[USER], stream=True)
    assert {None} == {chunk.usage async for chunk in stream}


async def test_the_clients_own_stream_helper_puts_the_answer_together(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    async with client.chat.completions.stream(
        model="ratchet", messages=[USER], n=2, extra_body={"best_of": 3}
    ) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} == kinds
    assert all(choice.message.content for choice in final.choices)
    assert [0, 1] == [choice.index for choice in final.choices]


async def test_tools_make_the_round_trip(serve: Serve, connect: Connect) -> None:
    served = await serve()
    client = connect(served)
    request: Any = {"model": "ratchet", "tools": [WEATHER], "extra_body": {"best_of": 3}}
    asked = await client.chat.completions.create(messages=[USER], tool_choice="required", **request)
    message = asked.choices[0].message
    assert asked.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.type == "function"
    assert (call.function.name, "place" in call.function.arguments) == ("weather", True)
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Rain."}
    sent_back: Any = message.to_dict()  # with its nulls, as applications do
    answered = await client.chat.completions.create(messages=[USER, sent_back, result], tool_choice="none", **request)
    assert (answered.choices[0].finish_reason, bool(answered.choices[0].message.content)) == ("stop", True)


@pytest.mark.parametrize("best_of", [1, 3])
async def test_a_streamed_tool_call_is_put_together(serve: Serve, connect: Connect, best_of: int) -> None:
    client = connect(await serve())
    request: Any = {"model": "ratchet", "messages": [USER], "tools": [WEATHER], "tool_choice": "required", "seed": 5}
    whole = await client.chat.completions.create(**request, extra_body={"best_of": best_of})
    async with client.chat.completions.stream(**request, extra_body={"best_of": best_of}) as stream:
        final = await stream.get_final_completion()
    assert whole.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls is not None
    expected, streamed = whole.choices[0].message.tool_calls[0], final.choices[0].message.tool_calls[0]
    assert expected.type == streamed.type == "function"
    assert streamed.function.name == expected.function.name
    assert streamed.id != expected.id  # two answers, which may stand in one conversation
    assert streamed.function.arguments == expected.function.arguments
    assert final.choices[0].finish_reason == "tool_calls"


class weather(pydantic.BaseModel):
    """Return the weather of a place."""

    place: str


async def called_by(client: AsyncOpenAI, way: str) -> tuple[Any, str]:
    """Return an assistant's message with a call, in one of the client's own forms, and the call's id."""
    request: Any = {"model": "ratchet", "messages": [USER], "tools": [WEATHER], "tool_choice": "required"}
    own: Any = {**request, "tools": [openai.pydantic_function_tool(weather)]}
    if way == "create":
        message: Any = (await client.chat.completions.create(**request)).choices[0].message
    elif way == "parse":
        message = (await client.chat.completions.parse(**own)).choices[0].message
    elif way == "stream":
        async with client.chat.completions.stream(**own) as stream:
            message = (await stream.get_final_completion()).choices[0].message
    else:
        calls: dict[int, Any] = {}
        async for chunk in await client.chat.completions.create(**request, stream=True):
            for piece in chunk.choices[0].delta.tool_calls or []:
                if piece.index in calls:
                    calls[piece.index].function.arguments += piece.function.arguments
                else:
                    calls[piece.index] = piece
        return {"role": "assistant", "tool_calls": [call.model_dump() for call in calls.values()]}, calls[0].id
    return message, message.tool_calls[0].id


@pytest.mark.parametrize("way", ["create", "parse", "stream", "by hand"])
@pytest.mark.parametrize("dumped", [False, True])
async def test_a_call_can_be_sent_back_as_the_client_gave_it(
    serve: Serve, connect: Connect, way: str, dumped: bool
) -> None:
    client = connect(await serve(policy={"n": 1}))
    message, call_id = await called_by(client, way)
    back = message.model_dump() if dumped and not isinstance(message, dict) else message
    result: Any = {"role": "tool", "tool_call_id": call_id, "name": "weather", "content": "rain"}
    answer = await client.chat.completions.create(model="ratchet", messages=[USER, back, result], tools=[WEATHER])
    assert answer.choices[0].message


@pytest.mark.parametrize("form", [{"base_url": "{}/v1"}, {"base_url": "{}"}, {"model": "{}"}])
async def test_huggingface_hubs_client_needs_no_model(serve: Serve, form: dict[str, str]) -> None:
    served = await serve()
    where: Any = {name: value.format(served.url) for name, value in form.items()}
    client: Any = InferenceClient(**where)
    answer = await asyncio.to_thread(client.chat_completion, [USER], max_tokens=8)
    assert answer.choices[0].message.content


async def test_n_answers_and_logprobs(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    answer = await client.chat.completions.create(
        model="ratchet", messages=[USER], n=3, logprobs=True, top_logprobs=2, extra_body={"best_of": 4}
    )
    assert 3 == len(answer.choices)
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        # TGI tells the end token too, which is no part of the text.
        assert "".join(token.token for token in choice.logprobs.content).startswith(choice.message.content or "?")
        assert {2} == {len(token.top_logprobs) for token in choice.logprobs.content}


class Boat(pydantic.BaseModel):
    name: str
    masts: int


async def test_parse_gives_the_callers_own_model(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    answer = await client.chat.completions.parse(model="ratchet", messages=[USER], response_format=Boat)
    assert isinstance(answer.choices[0].message.parsed, Boat)


async def test_models(serve: Serve, connect: Connect) -> None:
    client = connect(await serve(api={"models": ("ratchet", "org/alias")}))
    assert ["ratchet", "org/alias"] == [model.id async for model in client.models.list()]
    assert ("org/alias", "model") == (
        (found := await client.models.retrieve("org/alias")).id,
        found.object,
    )
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nope")


async def test_each_of_the_callers_mistakes_is_its_own_exception(serve: Serve, connect: Connect) -> None:
    client = connect(await serve())
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        await create(model="ratchet", messages=[USER], reasoning_effort="high")
    assert ("reasoning_effort", "unsupported_parameter") == (bad.value.param, bad.value.code)
    with pytest.raises(openai.BadRequestError) as bad:
        await create(model="ratchet", messages=[USER], extra_body={"best_of": 10_000})
    assert ("best_of", "invalid_value", "invalid_request_error") == (bad.value.param, bad.value.code, bad.value.type)
    with pytest.raises(openai.NotFoundError) as unknown:
        await create(model="gpt-9", messages=[USER])
    assert "model_not_found" == unknown.value.code
    with pytest.raises(openai.APIStatusError) as large:
        await create(model="ratchet", messages=[{"role": "user", "content": "a" * 1_000_000}])
    assert 413 == large.value.status_code


async def test_a_key_is_asked_for_where_there_are_keys(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    key, line = new_key("somebody")
    (tmp_path / "keys").write_text(line)
    served = await serve(api={"keys_file": tmp_path / "keys"})
    good, bad = connect(served, api_key=key), connect(served, api_key="rk-guess")
    assert (await good.chat.completions.create(model="ratchet", messages=[USER])).choices
    with pytest.raises(openai.AuthenticationError) as refused:
        await bad.chat.completions.create(model="ratchet", messages=[USER])
    assert "invalid_api_key" == refused.value.code
    with pytest.raises(openai.AuthenticationError):
        await bad.models.list()


@pytest.mark.parametrize(("status", "code"), [(500, "backend_failed"), (504, "backend_timeout")])
async def test_a_failing_backend_is_an_internal_server_error(
    serve: Serve, connect: Connect, status: int, code: str
) -> None:
    served = await serve(tgi=Knobs(fault=Fault.STATUS, fault_status=status, fault_probability=1.0))
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            await connect(served).chat.completions.create(model="ratchet", messages=[USER], stream=stream)
        assert code == failed.value.code


async def test_a_rate_limit_says_when_to_come_back_and_the_client_does(serve: Serve, connect: Connect) -> None:
    served = await serve(
        tgi=Knobs(latency_ms=1_000), race={"max_in_flight": 1, "max_waiting": 0, "queue_timeout_s": 0.5}
    )
    in_the_way = asyncio.create_task(served.chat(best_of=1))
    await served.tgi.state.until(lambda state: state.generating == 1)
    request: Any = {"model": "ratchet", "messages": [USER], "extra_body": {"best_of": 1}}
    with pytest.raises(openai.RateLimitError) as limited:
        await connect(served).chat.completions.create(**request)
    assert "1" == limited.value.response.headers["retry-after"]
    began = time.monotonic()
    patient = connect(served, max_retries=1)
    raw = await patient.chat.completions.with_raw_response.create(**request)
    assert (200, 1) == (raw.status_code, raw.retries_taken)
    assert time.monotonic() - began >= 1
    assert 200 == (await in_the_way).status_code


async def test_an_error_in_mid_stream_is_raised_there(serve: Serve, connect: Connect) -> None:
    served = await serve(
        tgi=Knobs(tokens_per_s=500, fault=Fault.DISCONNECT, fault_probability=1.0, fault_after_tokens=3)
    )
    stream = await connect(served).chat.completions.create(
        model="ratchet", messages=[USER], stream=True, extra_body={"best_of": 1}
    )
    said: list[str | None] = []

    async def read() -> None:
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content)

    with pytest.raises(openai.APIError) as broken:
        await read()
    assert any(said)
    assert "backend_unreachable" == broken.value.code


async def test_nobody_there_is_a_connection_error(serve: Serve, connect: Connect) -> None:
    served = await serve()
    client = connect(served).with_options(base_url="http://127.0.0.1:1/v1")
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(model="ratchet", messages=[USER])


@pytest.mark.parametrize("best_of", [1, 4])
async def test_a_client_that_times_out_ends_all_generation(serve: Serve, connect: Connect, best_of: int) -> None:
    served = await serve(tgi=Knobs(tokens_per_s=2))
    client = connect(served, timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(model="ratchet", messages=[USER], extra_body={"best_of": best_of})
    await served.tgi.state.until(lambda state: state.generating == 0)
    assert 0 == served.tgi.state.finished


async def test_a_stream_closed_in_the_middle_ends_generation(serve: Serve, connect: Connect) -> None:
    served = await serve(tgi=Knobs(tokens_per_s=20))
    stream = await connect(served).chat.completions.create(
        model="ratchet", messages=[USER], stream=True, extra_body={"best_of": 1}
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    assert 1 == served.tgi.state.generating
    await stream.close()
    await served.tgi.state.until(lambda state: state.generating == 0)
    assert (1, 0) == (served.tgi.state.cancelled, served.tgi.state.finished)


async def test_the_synchronous_client_works_too(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()

    def ask() -> tuple[str | None, str]:
        http = DefaultHttpxClient(trust_env=False)
        with OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, http_client=http) as client:
            request: Any = {"model": "ratchet", "messages": [USER], "seed": 1}
            whole = client.chat.completions.create(**request)
            pieces = client.chat.completions.create(**request, stream=True)
            return whole.choices[0].message.content, "".join(
                chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices
            )

    whole, streamed = await asyncio.to_thread(ask)
    assert streamed == whole
    assert 2 == len(await served.records(2))
