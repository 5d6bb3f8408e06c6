"""Chat requests translated into the gateway's own terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from openai.types.chat import completion_create_params

from gateway.api.schemas import ChatCompletionRequest
from gateway.api.translate import NEUTRAL, translate
from gateway.errors import CallerError, ModelNotFound, UnsupportedField
from gateway.settings import ApiSettings
from gateway.types import AnswerRequest, Message, Sampling

USER = {"role": "user", "content": "Hello"}
TEXT = {"type": "text", "text": "a"}
CALL: dict[str, Any] = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


def translated(*, header: str | None = None, **fields: Any) -> AnswerRequest:
    body = orjson.dumps({"model": "ratchet", "messages": [USER], **fields})
    request = ChatCompletionRequest.model_validate_json(body)
    return translate(request, best_of_header=header, api=ApiSettings(), best_of_max=16)


def test_the_official_clients_fields_are_all_known() -> None:
    official = set(completion_create_params.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert official | {"best_of"} == set(ChatCompletionRequest.model_fields)


def test_fields_that_are_not_set_stay_unset() -> None:
    asked = translated()
    assert Sampling() == asked.sampling
    assert (None, 1, True) == (asked.best_of, asked.n_returned, asked.store)


def test_null_means_not_set() -> None:
    fields = {name: None for name in ChatCompletionRequest.model_fields if name not in {"model", "messages"}}
    assert translated() == translated(**fields)


REFUSED: dict[str, Any] = {
    "audio": {},
    "function_call": {"name": "look"},
    "functions": [{"name": "look"}],
    "modalities": ["text", "audio"],
    "moderation": {},
    "prediction": {},
    "reasoning_effort": "low",
    "service_tier": "flex",
    "verbosity": "high",
    "web_search_options": {},
}


def test_unsupported_fields_are_refused_by_name_unless_they_change_nothing() -> None:
    assert set(NEUTRAL) == set(REFUSED)
    for field, value in REFUSED.items():
        asking_nothing: list[dict[str, Any]] = [{field: neutral} for neutral in NEUTRAL[field]]
        assert [translated()] * len(asking_nothing) == [translated(**fields) for fields in asking_nothing]
        with pytest.raises(UnsupportedField) as refused:
            translated(**{field: value})
        assert field == refused.value.param


@pytest.mark.parametrize(
    ("fields", "n"), [({"header": "5", "best_of": 3}, 5), ({"best_of": 3}, 3), ({"header": "016"}, 16), ({}, None)]
)
def test_n_in_the_header_goes_before_n_in_the_body(fields: dict[str, Any], n: int | None) -> None:
    assert n == translated(**fields).best_of


@pytest.mark.parametrize("fields", [{"header": "3", "best_of": 17}, {"header": "17", "best_of": 3}])
def test_neither_header_nor_body_may_ask_for_too_much(fields: dict[str, Any]) -> None:
    with pytest.raises(CallerError, match="between 1 and 16"):
        translated(**fields)


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 5}, 5),
        ({"max_tokens": None, "max_completion_tokens": 7}, 7),
    ],
)
def test_either_name_of_max_tokens_holds(fields: dict[str, Any], max_tokens: int) -> None:
    assert max_tokens == translated(**fields).sampling.max_tokens


def test_one_stop_string_is_a_list_of_one() -> None:
    stops = [translated(stop=stop).sampling.stop for stop in ("\n", ["a", "b"], [])]
    assert [("\n",), ("a", "b"), ()] == stops


def test_a_conversation_is_translated_turn_by_turn() -> None:
    parts = [{"type": "text", "text": "Look"}, {"type": "text", "text": " again"}]
    asked = translated(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts, "name": "ada"},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
            {"role": "tool", "content": parts, "tool_call_id": "call_1", "name": "look"},
            {"role": "assistant", "content": "Seen."},
            {"role": "user", "content": "Sure?"},
        ]
    )
    assert [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Look\n again", "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "Look\n again", "tool_call_id": "call_1", "name": "look"},
        {"role": "assistant", "content": "Seen."},
        {"role": "user", "content": "Sure?"},
    ] == asked.messages


def sent_back(**message: Any) -> Message:
    """Return an assistant's message as it is sent on when a client sends it back."""
    return translated(messages=[USER, {"role": "assistant", **message}, USER]).messages[1]


@pytest.mark.parametrize(
    ("message", "content"),
    [
        ({"content": "4", "reasoning": "2+2", "reasoning_content": "2+2"}, "4"),
        ({"content": "4", "reasoning": None, "reasoning_content": "", "refusal": None, "audio": None}, "4"),
        ({"content": "4", "annotations": [{"type": "url_citation"}], "parsed": {"n": 4}}, "4"),
        ({"content": "4", "tool_calls": None, "function_call": None, "anything": None}, "4"),
        ({"content": None, "refusal": "I cannot"}, "I cannot"),
        ({"content": None, "reasoning": "2+2"}, ""),
        ({}, ""),
        ({"content": [{"type": "refusal", "refusal": "no"}, {"type": "text", "text": "sorry"}]}, "no\nsorry"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]}, "a\n"),
        ({"content": []}, ""),
    ],
)
def test_fields_of_an_answer_may_be_sent_back(message: dict[str, Any], content: str) -> None:
    assert {"role": "assistant", "content": content} == sent_back(**message)


def test_tool_calls_may_be_sent_back_as_clients_store_them() -> None:
    """openai-python's ``parse`` adds ``parsed_arguments``; clients that assemble a stream keep ``index``."""
    function = {**CALL["function"], "parsed_arguments": {"a": 1}}
    for kept in ({**CALL, "index": 0, "custom": None}, {**CALL, "function": function}):
        assert {"role": "assistant", "content": None, "tool_calls": [CALL]} == sent_back(tool_calls=[kept])


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool"])
def test_null_means_not_set_in_messages_too(role: str) -> None:
    """Typed clients send every field that they know."""
    needed = {"tool_call_id": "call_1"} if role == "tool" else {}
    nulls = dict.fromkeys(["tool_calls", "refusal", "name", "audio", "unknown", *([] if needed else ["tool_call_id"])])
    plain = {"role": role, "content": "hi", **needed}
    assert translated(messages=[plain]).messages == translated(messages=[nulls | plain]).messages


@pytest.mark.parametrize(
    "fields",
    [
        {"unknown": None},
        {"top_logprobs": 0},
        {"logprobs": False, "top_logprobs": 0},
        {"stream_options": {"include_usage": False}},
        {"stream": False, "stream_options": {"include_usage": None, "unknown": None}},
        {"tools": [], "tool_choice": "auto"},
        {"tools": [], "tool_choice": "none"},
        {"tool_choice": "none"},
        {"functions": [], "function_call": "auto"},
        {"response_format": {"type": "text", "json_schema": None}},
    ],
)
def test_fields_that_change_nothing_are_dropped(fields: dict[str, Any]) -> None:
    asked = translated(**fields)
    assert asked.sampling.top_logprobs in (None, 0)
    assert translated() == replace(asked, sampling=replace(asked.sampling, top_logprobs=None))


@pytest.mark.parametrize("top_p", [0, 0.0, 1])
def test_top_p_is_accepted_over_its_whole_range(top_p: float) -> None:
    assert top_p == translated(top_p=top_p).sampling.top_p


def test_a_format_without_a_schema_is_any_object() -> None:
    assert {"type": "json_object"} == translated(
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": None}}
    ).sampling.response_format


def test_the_hubs_client_without_a_model_is_served() -> None:
    assert "dummy" == translated(model="dummy").model
    with pytest.raises(ModelNotFound):
        translated(model="dumm")


def test_n_answers_at_temperature_0_are_drawn_as_often_as_they_are_returned() -> None:
    assert 2 == translated(n=2, temperature=0).n_returned


def test_tools_are_completed_and_free_text_needs_no_format() -> None:
    sampling = translated(
        tools=[{"type": "function", "function": {"name": "look", "strict": None}}],
        tool_choice={"type": "function", "function": {"name": "look"}},
        parallel_tool_calls=False,
        response_format={"type": "text"},
    ).sampling
    function = {"name": "look", "parameters": {"type": "object", "properties": {}}}
    assert ({"type": "function", "function": function},) == sampling.tools
    assert {"type": "function", "function": {"name": "look"}} == sampling.tool_choice
    assert (False, None) == (sampling.parallel_tool_calls, sampling.response_format)


def test_a_schema_is_passed_on_unchanged() -> None:
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "x": None}}}
    assert {**named, "json_schema": {"name": "a", "schema": {"type": "object", "x": None}}} == translated(
        response_format=named
    ).sampling.response_format


def test_store_user_and_metadata_are_kept() -> None:
    asked = translated(store=False, user="me", metadata={"a": "b"})
    assert (False, "me", {"a": "b"}) == (asked.store, asked.user, asked.metadata)


def test_every_parameter_of_sampling_is_passed_on_under_its_name() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    given: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 7,
        "frequency_penalty": 0.75,
        "presence_penalty": -0.75,
        "logit_bias": {"5": 1.5},
        "logprobs": True,
        "top_logprobs": 3,
        "parallel_tool_calls": True,
    }
    any_object = {"type": "json_object"}
    expected = Sampling(
        **given, max_tokens=9, stop=("x",), tools=(tool,), tool_choice="required", response_format=any_object
    )
    more: dict[str, Any] = {"max_tokens": 9, "stop": "x", "tools": [tool], "tool_choice": "required"}
    assert expected == translated(**given, **more, response_format=any_object).sampling


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"header": "0"}, "X-Best-Of"),
        ({"header": "1"}, None),
        ({"header": "16"}, None),
        ({"header": "17"}, "X-Best-Of"),
        ({"header": "000016"}, None),
        ({"header": "0000016"}, "X-Best-Of"),
        ({"header": ""}, "X-Best-Of"),
        ({"header": "-1"}, "X-Best-Of"),
        ({"header": "²"}, "X-Best-Of"),
        ({"header": "1.0"}, "X-Best-Of"),
        ({"best_of": 1}, None),
        ({"best_of": 16}, None),
        ({"best_of": 17}, "best_of"),
        ({"n": 16}, None),
        ({"n": 17}, "n"),
        ({"n": 3, "best_of": 3}, None),
        ({"n": 4, "best_of": 3}, "n"),
        ({"n": 4, "best_of": 3, "header": "4"}, None),
        ({"stop": ["a"] * 4}, None),
        ({"stop": ["a"] * 5}, "stop"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 1, "logprobs": True}, None),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
    ],
    ids=str,
)
def test_each_bound_is_refused_by_the_fields_name(fields: dict[str, Any], param: str | None) -> None:
    if param is None:
        translated(**fields)
        return
    with pytest.raises(CallerError) as refused:
        translated(**fields)
    assert param == refused.value.param


@pytest.mark.parametrize(("messages", "taken"), [(1, True), (2, True), (3, False)])
def test_the_number_of_messages_is_limited(messages: int, taken: bool) -> None:
    request = ChatCompletionRequest.model_validate({"model": "ratchet", "messages": [USER] * messages})
    api = ApiSettings(max_messages=2)
    if taken:
        assert messages == len(translate(request, best_of_header=None, api=api, best_of_max=16).messages)
    else:
        with pytest.raises(CallerError, match="3 messages are over this server's limit of 2") as refused:
            translate(request, best_of_header=None, api=api, best_of_max=16)
        assert "messages" == refused.value.param


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (
            [USER, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            "[1].content[1].type",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "[0].content[0].text"),
        ([{"role": "assistant", "content": [{"type": "refusal"}]}, USER], "[0].content[0].refusal"),
        ([{"role": "assistant", "content": "a", "audio": {"id": "x"}}, USER], "[0].audio"),
        ([{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}, USER], "[0].function_call"),
        ([USER, {"role": "assistant", "content": "a"}], "[-1]"),
    ],
)
def test_unsupported_content_is_refused_by_its_place(messages: list[Any], param: str) -> None:
    with pytest.raises(CallerError) as refused:
        translated(messages=messages)
    assert f"messages{param}" == refused.value.param


def test_an_unknown_models_name_is_shortened() -> None:
    with pytest.raises(ModelNotFound, match=f"the model '{'m' * 64}' does not exist here"):
        translated(model="m" * 65)


@pytest.mark.parametrize(("field", "instead"), [("function_call", "; use tool_choice"), ("functions", "; use tools")])
def test_the_error_of_an_old_field_names_the_new_one(field: str, instead: str) -> None:
    with pytest.raises(UnsupportedField, match=f"^{field} is not supported here{instead}$"):
        translated(**{field: REFUSED[field]})
    with pytest.raises(UnsupportedField, match=r"^verbosity is not supported here$"):
        translated(verbosity="high")
