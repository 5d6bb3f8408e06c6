from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.backend.failures import from_status
from gateway.backend.flavours import FLAVOURS, Catalogue, Flavour, Refusal
from gateway.contract.json_regex import ANY_OBJECT
from gateway.errors import BackendMisconfigured, BackendRejected, ContextLengthExceeded, UnsupportedField
from gateway.types import JsonObject, Sampling
from tests.gateway.backend.conftest import prompt

CATALOGUES = {
    "tgi": Catalogue("tgi"),
    "vllm": Catalogue("base-7b", {"rft-1": "rft-1"}),
    "llamacpp": Catalogue("default", {"rft-1": 3}),
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "default": None}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
SCHEMA = {"type": "object", "properties": {"city": {"const": None}}}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


def sent(kind: str, *, seed: int = 1, adapter: str | None = None, **sampling: Any) -> JsonObject:
    """Return the fields that a flavour sends, as JSON."""
    arguments = FLAVOURS[kind].arguments(prompt(adapter=adapter, **sampling), seed, CATALOGUES[kind])
    said = arguments.pop("extra_body", {}) | arguments
    fields: JsonObject = orjson.loads(orjson.dumps(said))
    return {
        name: value for name, value in fields.items() if value is not None and name not in ("messages", "extra_body")
    }


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tgi", {"model": "tgi", "seed": 1}),
        ("vllm", {"model": "base-7b", "seed": 1}),
        ("llamacpp", {"model": "default", "seed": 1, "lora": [{"id": 0, "scale": 0.0}]}),
    ],
)
def test_fields_that_the_caller_left_out_are_not_sent(kind: str, expected: JsonObject) -> None:
    assert expected == sent(kind)


@pytest.mark.parametrize("kind", FLAVOURS)
def test_every_field_that_a_backend_serves_reaches_it(kind: str) -> None:
    said: JsonObject = {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 9,
        "frequency_penalty": 0.5,
        "tool_choice": "auto",
    }
    expected = said | {"stop": ["a", "b"], "logprobs": True, "top_logprobs": 2, "tools": [TOOL]}
    fields = sent(kind, **said, stop=("a", "b"), logprobs=True, top_logprobs=2, tools=(TOOL,))
    assert expected == {name: fields[name] for name in expected}


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_servers_that_follow_openai_get_every_field(kind: str) -> None:
    said: JsonObject = {"presence_penalty": 0.0, "logit_bias": {"5": -1.0}, "parallel_tool_calls": False}
    fields = sent(kind, **said)
    FLAVOURS[kind].check(Sampling(**said))
    assert said == {name: fields[name] for name in said}


def test_defaults_that_tgi_refuses_or_misreads_are_not_sent() -> None:
    assert {"model": "tgi", "seed": 1} == sent(
        "tgi",
        top_p=1.0,
        frequency_penalty=0.0,
        presence_penalty=0.0,
        logit_bias={},
        response_format={"type": "text"},
        parallel_tool_calls=True,
    )


@pytest.mark.parametrize("kind", FLAVOURS)
def test_a_top_p_of_zero_is_sent_as_the_smallest_positive_one(kind: str) -> None:
    assert 0 < sent(kind, top_p=0.0)["top_p"] < 1e-3


@pytest.mark.parametrize(
    ("kind", "seed", "expected"),
    [
        ("tgi", 2**64 - 1, 2**64 - 1),
        ("tgi", -1, 2**64 - 1),
        ("vllm", 2**63 + 5, 5),
        ("llamacpp", 2**32 - 1, 0),
        ("llamacpp", 2**63 - 1, (2**63 - 1) % (2**32 - 1)),
    ],
)
def test_seeds_are_reduced_to_the_servers_range(kind: str, seed: int, expected: int) -> None:
    assert expected == sent(kind, seed=seed)["seed"]


@pytest.mark.parametrize(
    ("field", "sampling"),
    [
        ("logit_bias", {"logit_bias": {"5": 1.0}}),
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("stop", {"stop": ("a", "b", "c", "d", "e")}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 6}),
        ("response_format", {"tools": (TOOL,), "response_format": {"type": "json_object"}}),
    ],
)
def test_fields_that_tgi_cannot_serve_are_refused_by_name(field: str, sampling: JsonObject) -> None:
    with pytest.raises(UnsupportedField, match=f"^{field}: ") as refused:
        FLAVOURS["tgi"].check(Sampling(**sampling))
    assert field == refused.value.param


def test_tgi_serves_tools_with_a_text_response_format() -> None:
    FLAVOURS["tgi"].check(Sampling(tools=(TOOL,), response_format={"type": "text"}))


@pytest.mark.parametrize(
    ("kind", "wanted", "expected"),
    [
        ("tgi", JSON_SCHEMA, {"type": "json_object", "value": SCHEMA}),
        ("tgi", {"type": "json_object"}, {"type": "regex", "value": ANY_OBJECT}),
        ("vllm", JSON_SCHEMA, JSON_SCHEMA),
        ("vllm", {"type": "json_object"}, {"type": "json_object"}),
        ("llamacpp", JSON_SCHEMA, {"type": "json_object", "schema": SCHEMA}),
        ("llamacpp", {"type": "json_object"}, {"type": "json_object"}),
    ],
)
def test_each_server_gets_response_formats_in_its_own_shape(
    kind: str, wanted: JsonObject, expected: JsonObject
) -> None:
    assert expected == sent(kind, response_format=wanted)["response_format"]


def test_llamacpp_is_asked_for_one_alternative_to_get_logprobs() -> None:
    assert 1 == sent("llamacpp", logprobs=True)["top_logprobs"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tgi", {"model": "rft-1"}),
        ("vllm", {"model": "rft-1"}),
        ("llamacpp", {"model": "default", "lora": [{"id": 3, "scale": 1.0}]}),
    ],
)
def test_each_server_addresses_an_adapter_its_own_way(kind: str, expected: JsonObject) -> None:
    fields = sent(kind, adapter="rft-1")
    assert expected == {name: fields[name] for name in expected}


def test_the_base_flavour_passes_on_no_text_of_an_error() -> None:
    assert Refusal() == Flavour().refusal({"error": "secret"})


def test_vllm_lists_base_and_adapters_as_models() -> None:
    listing = {"data": [{"id": "rft-1", "parent": "base-7b"}, {"id": "base-7b", "parent": None}]}
    assert CATALOGUES["vllm"] == FLAVOURS["vllm"].read_catalogue(listing)


def test_llamacpp_lists_adapters_by_file() -> None:
    assert CATALOGUES["llamacpp"] == FLAVOURS["llamacpp"].read_catalogue([{"id": 3, "path": "/a/rft-1.gguf"}])


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("tgi", {"error": "Input validation error: too long", "error_type": "validation"}, True),
        ("tgi", {"error": {"message": "Template error: roles must alternate"}}, True),
        (
            "tgi",
            {"error": "Tool error: Failed to parse generated text: EOF {secret", "error_type": "tool_error"},
            False,
        ),
        ("tgi", {"error": "unexpected secret"}, False),
        ("tgi", {"error": 5}, False),
        ("vllm", {"error": {"message": "This model's maximum context length is 4096 tokens."}}, True),
        ("vllm", {"object": "error", "message": "This model's maximum context length is 4096 tokens."}, True),
        ("vllm", {"error": {"message": "validation error for secret"}}, False),
        ("vllm", {"error": "secret"}, False),
        ("llamacpp", {"error": {"type": "exceed_context_size_error", "message": "too long"}}, True),
        ("llamacpp", {"error": {"type": "invalid_request_error", "message": "secret"}}, False),
    ],
)
def test_only_reasons_that_quote_no_request_are_passed_on(kind: str, body: JsonObject, expected: bool) -> None:
    assert expected == (FLAVOURS[kind].refusal(body).reason is not None)


def tgi_error(text: str) -> JsonObject:
    return {"error": f"Input validation error: {text}", "error_type": "validation"}


def vllm_error(message: str, param: Any = None) -> JsonObject:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}


TOGETHER = "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: {} `inputs` tokens and {} `max_new_tokens`"
LLAMACPP = {"type": "exceed_context_size_error", "code": 400, "n_prompt_tokens": 3031, "n_ctx": 2048}
TOO_LONG: list[tuple[str, JsonObject, str]] = [
    ("tgi", tgi_error(TOGETHER.format(3031, 5)), "messages"),
    ("tgi", tgi_error(TOGETHER.format(3031, 0)), "messages"),
    ("tgi", tgi_error(TOGETHER.format(2048, 1)), "messages"),
    ("tgi", tgi_error(TOGETHER.format(2047, 2)), "max_tokens"),
    ("tgi", tgi_error(TOGETHER.format(1531, 1000)), "max_tokens"),
    ("tgi", {"error": {"message": tgi_error(TOGETHER.format(3031, 5))["error"], "http_status_code": 422}}, "messages"),
    ("tgi", tgi_error("`inputs` must have less than 2048 tokens. Given: 3031"), "messages"),
    ("llamacpp", {"error": {**LLAMACPP, "message": "request (3031 tokens) exceeds"}}, "messages"),
    ("llamacpp", {"error": {"type": "exceed_context_size_error", "message": "over 2048"}}, "messages"),
    ("vllm", vllm_error("This model's maximum context length is 2048 tokens. Yours", "input_tokens"), "messages"),
    ("vllm", vllm_error("This model's maximum context length is 2048 tokens. You requested"), "messages"),
    ("vllm", vllm_error("max_tokens=5000 cannot be greater than max_model_len=2048.", "max_tokens"), "max_tokens"),
    ("vllm", vllm_error("max_completion_tokens=5000 cannot be greater than max_model_len=2048"), "max_tokens"),
    ("vllm", vllm_error("max_tokens=5000 cannot be greater than max_model_len=max_total_tokens=2048"), "max_tokens"),
    ("vllm", vllm_error("'max_tokens' or 'max_completion_tokens' is too large: 5000. Over 2048"), "max_tokens"),
    ("vllm", vllm_error("The decoder prompt (length 31) is longer than the maximum model length of 2048"), "messages"),
    ("vllm", {"object": "error", "message": "The input (3031 tokens) is longer than the model's context length (2048"},
     "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "body", "param"), TOO_LONG)
def test_a_request_that_is_too_long_is_the_same_error_with_numbers_on_every_backend(
    kind: str, body: JsonObject, param: str
) -> None:
    error = from_status(400 if kind == "vllm" else 422, body, FLAVOURS[kind])
    assert isinstance(error, ContextLengthExceeded)
    assert param == error.param
    assert "2048" in error.message


def test_a_request_that_is_too_long_is_refused_in_openais_words() -> None:
    """LiteLLM and LangChain look for them to choose a model with a longer context."""
    told = [
        from_status(422, tgi_error(TOGETHER.format(*given)), FLAVOURS["tgi"]).message
        for given in ((9, 2048), (3031, 5))
    ]
    assert all(message.startswith("This model's maximum context length is 2048 tokens.") for message in told)
    assert ["9 tokens and max_tokens asks for 2048 more" in told[0], "3031 tokens" in told[1]] == [True, True]


@pytest.mark.parametrize(
    ("param", "expected"),
    [
        ("logit_bias", "logit_bias"),
        ("tools[0].function", "tools[0].function"),
        ("a secret", None),
        ("x" * 65, None),
        (5, None),
    ],
)
def test_the_field_that_vllm_names_is_passed_on_and_its_words_are_not(param: Any, expected: str | None) -> None:
    error = from_status(400, vllm_error("secret text", param), FLAVOURS["vllm"])
    assert isinstance(error, BackendRejected)
    assert (expected, False) == (error.param, "secret" in error.message)
    assert (expected or "the request") in error.message


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("vllm", '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        ("vllm", 'tool_choice="required" requires --tool-call-parser to be set'),
        ("vllm", 'tool_choice=function "secret" requires --tool-call-parser to be set'),
        ("llamacpp", "tools param requires --jinja flag"),
    ],
)
def test_a_missing_server_option_is_the_operators_mistake(kind: str, message: str) -> None:
    error = from_status(400, vllm_error(message), FLAVOURS[kind])
    assert isinstance(error, BackendMisconfigured)
    assert ("--" in error.message, "secret" in error.message) == (True, False)
