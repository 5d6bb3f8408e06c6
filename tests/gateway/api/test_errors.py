"""The error table and the tree drawn in gateway.errors name every error, and each becomes OpenAI's envelope."""

from __future__ import annotations

import inspect
import re

import orjson
import pydantic
import pytest

from gateway import errors
from gateway.api import errors as api_errors
from gateway.api.schemas import ChatCompletionRequest, FeedbackRequest

CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.GatewayError) and kind.__module__ == errors.__name__
]
# Never raised: they only group others.
GROUPS = {errors.GatewayError, errors.CallerError, errors.BackendError}


def drawn_tree() -> dict[str, str | None]:
    """Return each class of the tree at the top of ``gateway.errors``, with its parent."""
    parents: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^ {4}([│├└─ ]*)([A-Z][A-Za-z]+)(?: {2,}|$)", line):
            depth, name = len(match[1]), match[2]
            above = [(at, parent) for at, parent in above if at < depth]
            parents[name] = above[-1][1] if above else None
            above.append((depth, name))
    return parents


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {kind.__name__: kind.__bases__[0].__name__ if kind is not errors.GatewayError else None for kind in CLASSES}
    assert real == drawn_tree()


def test_the_table_has_every_error_that_can_be_raised() -> None:
    assert set(CLASSES) - GROUPS == set(api_errors.TABLE)


@pytest.mark.parametrize("kind", api_errors.TABLE, ids=lambda kind: kind.__name__)
def test_each_error_is_openais_envelope_with_its_status(kind: type[errors.GatewayError]) -> None:
    status, type_, code = api_errors.TABLE[kind]
    response = api_errors.respond(kind("what went wrong"))
    assert status == response.status_code
    assert "application/json" == response.headers["content-type"]
    assert {"message": "what went wrong", "type": type_, "param": None, "code": code} == orjson.loads(
        bytes(response.body)
    )["error"]
    later = status == 429 or kind is errors.RequestContained
    assert later == ("retry-after" in response.headers)
    assert ("false" if kind is errors.RequestContained else None) == response.headers.get("x-should-retry")
    assert (status == 401) == ("www-authenticate" in response.headers)


def test_every_code_is_unique() -> None:
    codes = [code for _, _, code in api_errors.TABLE.values()]
    assert len(codes) == len(set(codes))


def test_an_error_that_the_table_lacks_is_internal() -> None:
    class Stranger(errors.GatewayError):
        """An error that the table lacks."""

    assert 500 == api_errors.respond(Stranger("?")).status_code


def test_a_callers_error_names_the_field() -> None:
    _, body, _ = api_errors.describe(errors.InvalidRequest("too many", param="stop"))
    assert "stop" == body["error"]["param"]


@pytest.mark.parametrize(("wait_s", "header"), [(1.0, "1"), (2.1, "3"), (30.0, "30")])
def test_retry_after_is_in_whole_seconds_rounded_up(wait_s: float, header: str) -> None:
    response = api_errors.respond(errors.Overloaded("full", retry_after_s=wait_s))
    assert header == response.headers["retry-after"]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, ("invalid_request_error", "not_found")),
        (405, ("invalid_request_error", "method_not_allowed")),
        (418, ("invalid_request_error", None)),
        (500, ("internal_error", None)),
    ],
)
def test_errors_of_http_itself_have_the_same_envelope(status: int, expected: tuple[str, str | None]) -> None:
    response = api_errors.respond_status(status, "no", {"allow": "GET"})
    error = orjson.loads(bytes(response.body))["error"]
    assert (status, expected) == (response.status_code, (error["type"], error["code"]))
    assert "GET" == response.headers["allow"]


def problem(model: type[pydantic.BaseModel], body: bytes) -> errors.InvalidRequest:
    with pytest.raises(pydantic.ValidationError) as caught:
        model.model_validate_json(body)
    return api_errors.invalid_body(caught.value)


def test_an_error_in_a_union_is_about_the_member_that_was_meant() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":1}]}]}'
    assert "messages[0].content[1].type" == problem(ChatCompletionRequest, body).param


def test_the_first_bad_field_is_reported() -> None:
    error = problem(ChatCompletionRequest, b'{"model":1,"messages":[{"role":"user","content":[{"type":1}]}]}')
    assert ("model", "model: Input should be a valid string") == (error.param, error.message)


def test_errors_of_feedback_use_the_same_words() -> None:
    error = problem(FeedbackRequest, b'{"id":"a secret plan","rating":1}')
    assert ("id", False) == (error.param, "secret" in error.message)


LEFT = {"x-ratelimit-remaining-requests": "0"}


@pytest.mark.parametrize(
    ("error", "headers"),
    [
        (errors.Overloaded("full"), {"retry-after": "1", "retry-after-ms": "1000"}),
        (errors.Overloaded("full", retry_after_s=0.0001), {"retry-after": "1", "retry-after-ms": "1"}),
        (errors.Overloaded("full", retry_after_s=1.0001), {"retry-after": "2", "retry-after-ms": "1001"}),
        (errors.BackendOverloaded("full"), {"retry-after": "1", "retry-after-ms": "1000"}),
        (
            errors.RateLimited("too many", retry_after_s=2.5, headers=LEFT),
            {"retry-after": "3", "retry-after-ms": "2500", **LEFT},
        ),
        (errors.RequestTooSlow("slow"), {"connection": "close"}),
        (errors.UnsupportedContentEncoding("br"), {"accept-encoding": "gzip, deflate"}),
        (errors.UnsupportedContentType("text"), {}),
        (errors.RequestContained("broke", retry_after_s=2.5), {"retry-after": "3", "x-should-retry": "false"}),
        (errors.NotReady("not yet"), {}),
        (errors.AuthenticationFailed("who"), {"www-authenticate": "Bearer"}),
        (errors.PermissionDenied("no"), {}),
        (errors.BackendFailed("500"), {}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_errors_headers_tell_a_client_what_to_do_next(error: errors.GatewayError, headers: dict[str, str]) -> None:
    assert headers == api_errors.describe(error)[2]


@pytest.mark.parametrize(
    ("status", "type_", "code"),
    [
        (400, "invalid_request_error", "invalid_request"),
        (499, "invalid_request_error", None),
        (500, "internal_error", None),
    ],
)
def test_a_status_below_500_without_an_error_class_is_the_callers_fault(
    status: int, type_: str, code: str | None
) -> None:
    body = orjson.loads(bytes(api_errors.respond_status(status, "no").body))
    assert {"error": {"message": "no", "type": type_, "param": None, "code": code}} == body


class Many(pydantic.BaseModel):
    """A body of many whole numbers."""

    values: list[int]


@pytest.mark.parametrize(("mistakes", "only_counted"), [(99, False), (100, False), (101, True)])
def test_more_than_a_hundred_mistakes_are_only_counted(mistakes: int, only_counted: bool) -> None:
    error = problem(Many, orjson.dumps({"values": ["x"] * mistakes}))
    counted = f"the body has {mistakes} errors"
    assert only_counted == (counted == error.message)
    assert (None if only_counted else "values[0]") == error.param


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        (b"{", None, "the body is not valid JSON"),
        (b"[]", None, "the body: Input should be an object"),
        (b"{}", "model", "model: Field required"),
        (b'{"model":"m"}', "messages", "messages: Field required"),
        (b'{"model":"m","messages":[{"role":"nobody","content":"a"}]}', "messages[0].role", None),
        (b'{"model":"m","messages":[{"content":"a"}]}', "messages[0].role", "messages[0].role: Field required"),
        (b'{"model":"m","messages":[{"role":"user","content":"a"}],"stop":[1]}', "stop[0]", None),
        (b'{"model":"m","messages":[{"role":"user","content":"a"}],"n":"x"}', "n", None),
        (
            b'{"model":"m","messages":[{"role":"user","content":"a"}],"nonsense":1}',
            "nonsense",
            "unknown field: nonsense",
        ),
    ],
)
def test_an_error_names_the_place_in_the_callers_body(body: bytes, param: str | None, message: str | None) -> None:
    error = problem(ChatCompletionRequest, body)
    assert param == error.param
    assert message is None or message == error.message


def test_a_long_field_name_is_shortened() -> None:
    name = "n" * 65
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}], name: 1})
    assert f"unknown field: {name[:64]}" == problem(ChatCompletionRequest, body).message
