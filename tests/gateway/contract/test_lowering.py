"""Schemas as each server takes them: TGI by its compiler's own rules, the others by what the real ones refuse."""

import json
import math
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.contract.bounds import check_bounds
from gateway.contract.json_regex import ANY_ARRAY, ANY_OBJECT, ANY_VALUE
from gateway.contract.lowering import lower, lower_tools, tgi_parameters, tgi_response_format
from gateway.errors import InvalidRequest
from gateway.settings import SchemaSettings
from gateway.types import JsonObject, Sampling
from tests.gateway.contract.test_bounds import ANY_SCHEMA, INTEGER, form, inside
from tests.stubs.tgi_grammar import Grammar
from tests.stubs.tgi_schema import PATIENCE_S, compile_schema, compile_tools

STRING = {"type": "string"}
PLAIN: dict[str, Any] = {"anyOf": [STRING, {"type": "number"}, {"type": "boolean"}, {"type": "null"}]}
ANY: dict[str, Any] = {
    "anyOf": [
        *PLAIN["anyOf"], {"type": "array", "items": PLAIN}, {"type": "object", "additionalProperties": PLAIN},
    ]
}  # fmt: skip
ANY_TYPE = {"type": ["string", "number", "boolean", "null", "array", "object"]}


def of_tgi(schema: JsonObject) -> Any:
    """Return the lowered schema of the property ``a``."""
    found = tgi_response_format(inside(schema))
    assert "json_object" == found["type"]
    return found["value"]["properties"].get("a")


@pytest.mark.parametrize(
    ("schema", "lowered"),
    [
        ({"type": ["integer", "null"]}, {"anyOf": [INTEGER, {"type": "null"}]}),
        ({}, ANY),
        (True, ANY),
        ({"title": "A"}, {**ANY, "title": "A"}),
        ({"not": {"type": "null"}}, ANY),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, ANY),
        ({"allOf": [INTEGER]}, INTEGER),
        ({"allOf": [{"type": ["integer", "string"]}, INTEGER]}, INTEGER),
        ({"const": {"x": [1, None]}}, {
            "type": "object", "required": ["x"],
            "properties": {"x": {"type": "array", "prefixItems": [{"const": 1}, {"const": None}]}},
        }),
        ({"enum": ["a", 1, []]}, {"anyOf": [{"enum": ["a", 1]}, {"type": "array", "maxItems": 0}]}),
        ({"type": "string", "enum": ["a", 1]}, {"const": "a"}),
        ({"type": "string", "format": "email"}, STRING),
        ({"type": "string", "format": "uuid"}, {"type": "string", "format": "uuid"}),
        ({"type": "string", "pattern": r"^\d{3}$"}, {"type": "string", "pattern": "^[0-9]{3}$"}),
        ({"type": "string", "pattern": r"\bab\b"}, STRING),
        ({"type": "string", "pattern": "^[a-z]{200}$"}, {"type": "string", "pattern": "^[a-z]{200}$"}),
        ({"type": "string", "pattern": "^[a-z]{201}$"}, STRING),
        ({"type": "string", "maxLength": 32}, {"type": "string", "maxLength": 32}),
        ({"type": "string", "maxLength": 33}, STRING),
        ({"type": "string", "maxLength": math.inf}, STRING),
        ({"type": "string", "minLength": 1, "maxLength": 2083, "format": "uri"}, {"type": "string", "minLength": 1}),
        ({"type": "array", "items": STRING, "minItems": 2, "maxItems": 16},
         {"type": "array", "items": STRING, "minItems": 2, "maxItems": 16}),
        ({"type": "array", "items": STRING, "maxItems": 17}, {"type": "array", "items": STRING}),
        ({"type": "array", "items": STRING, "minItems": 33}, {"type": "array", "items": STRING, "minItems": 1}),
        ({"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 5},
         {"type": "array", "items": STRING, "maxItems": 5}),
        ({"type": "array", "prefixItems": [STRING, INTEGER]}, {"type": "array", "prefixItems": [STRING, INTEGER]}),
        ({"type": "object"}, {"type": "object", "additionalProperties": PLAIN}),
        ({"type": "object", "additionalProperties": INTEGER}, {"type": "object", "additionalProperties": INTEGER}),
        ({"type": "object", "additionalProperties": False}, {"type": "object", "properties": {}}),
        ({"type": "object", "required": ["x"]}, {"type": "object", "properties": {"x": ANY}, "required": ["x"]}),
        ({"properties": {f"p{i}": INTEGER for i in range(33)}}, {"type": "object", "additionalProperties": PLAIN}),
        ({"type": "integer", "minimum": 1, "description": "how many"},
         {"type": "integer", "minimum": 1, "description": "how many"}),
        ({"type": "nonsense"}, ANY),
        ({"$ref": "#/$defs/missing"}, ANY),
        (False, None),
    ],
)  # fmt: skip
def test_tgi_gets_keywords_that_its_compiler_knows(schema: Any, lowered: Any) -> None:
    assert lowered == of_tgi(schema)


@pytest.mark.parametrize(
    ("schema", "lowered"),
    [
        (None, {"type": "regex", "value": ANY_OBJECT}),
        ({"type": "object"}, {"type": "regex", "value": ANY_OBJECT}),
        ({"type": "array", "items": INTEGER}, {"type": "regex", "value": ANY_ARRAY}),
        ({"type": "string"}, {"type": "regex", "value": ANY_VALUE}),
        ({"anyOf": [inside(INTEGER), INTEGER]}, {"type": "regex", "value": ANY_VALUE}),
        ({"$ref": "#/$defs/A", "$defs": {"A": inside(INTEGER)}}, {"type": "json_object", "value": inside(INTEGER)}),
        (
            {"oneOf": [inside(INTEGER, required=["a"]), {"properties": {"a": STRING, "b": STRING}, "required": ["a"]}]},
            {
                "type": "json_object",
                "value": {
                    "type": "object",
                    "properties": {"a": {"anyOf": [INTEGER, STRING]}, "b": STRING},
                    "required": ["a"],
                },
            },
        ),
    ],
)
def test_tgi_gets_properties_at_the_top_or_an_expression(schema: JsonObject | None, lowered: JsonObject) -> None:
    assert lowered == tgi_response_format(schema)


NODE = inside(INTEGER, required=["a", "next"])
NODE["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}


def test_a_recursive_schema_is_unrolled_for_tgi() -> None:
    lowered = tgi_response_format({"$ref": "#/$defs/N", "$defs": {"N": NODE}})["value"]
    depth = 0
    while (following := lowered["properties"]["next"]) != {"type": "null"}:
        lowered, depth = following["anyOf"][0], depth + 1
    assert 3 == depth


def test_a_schema_that_never_ends_is_any_object_for_tgi() -> None:
    endless = inside({"$ref": "#/$defs/N"}, required=["a"])
    assert {"type": "regex", "value": ANY_OBJECT} == tgi_response_format({"$ref": "#/$defs/N", "$defs": {"N": endless}})


def test_a_tools_parameters_are_always_an_object_with_properties_for_tgi() -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": schema}}
        for schema in (
            {"type": "object"},
            {"$ref": "#/$defs/A", "$defs": {"A": inside({"$ref": "#/$defs/B"}), "B": INTEGER}},
            {"type": "array"},
        )
    ]
    lowered = [tool["function"]["parameters"] for tool in lower_tools(tuple(tools), tgi_parameters)]
    assert [{"type": "object", "properties": {}}, inside(INTEGER), {"type": "object", "properties": {}}] == lowered


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
@pytest.mark.parametrize(
    "schema",
    [
        inside(INTEGER, required=["a"], additionalProperties=False, title="A", description="all"),
        inside({"type": ["integer", "null"], "default": None, "minimum": 0}),
        inside({"type": "string", "pattern": "^[^,]{1,9}$", "title": "no comma"}),
        inside({"type": "array", "items": {"enum": ["a", None, {"x": 1}]}, "minItems": 1, "maxItems": 9}),
        inside({"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}, **{"$defs": {"N": NODE}}),
        inside({"const": None}),
    ],
)
def test_an_ordinary_schema_is_unchanged(kind: str, schema: JsonObject) -> None:
    assert json.dumps(schema) == json.dumps(lower(schema, kind))


@pytest.mark.parametrize(
    ("kind", "schema", "lowered"),
    [
        ("llamacpp", {}, ANY_TYPE),
        ("llamacpp", True, ANY_TYPE),
        ("llamacpp", {"title": "A"}, {"title": "A", **ANY_TYPE}),
        ("vllm", True, {}),
        ("llamacpp", {**STRING, "pattern": "^(a{0,4}){0,4}$"}, {**STRING, "pattern": "^(a{0,4}){0,4}$"}),
        ("llamacpp", {**STRING, "pattern": "^(a{0,4}){0,5}$"}, STRING),
        ("vllm", {**STRING, "pattern": "^(a{0,9}){0,9}$"}, {**STRING, "pattern": "^(a{0,9}){0,9}$"}),
        ("vllm", {"type": "string", "pattern": r"^\p{L}$"}, STRING),
        ("vllm", {"type": "string", "pattern": "^a{1000}$"}, {"type": "string", "pattern": "^a{1000}$"}),
        ("vllm", {"type": "string", "pattern": "^a{1001}$"}, STRING),
        ("vllm", {"type": "string", "pattern": "^a+$", "maxLength": 9}, {"type": "string", "pattern": "^a+$"}),
        ("vllm", {"type": "string", "format": "binary"}, STRING),
        ("vllm", {"type": "array", "uniqueItems": True, "items": INTEGER}, {"type": "array", "items": INTEGER}),
        ("vllm", {"type": "array", "minItems": 2}, {"type": "array", "minItems": 2, "items": {}}),
        ("vllm", {"items": [INTEGER, STRING], "type": "array"}, {"type": "array", "prefixItems": [INTEGER, STRING]}),
        ("vllm", {**INTEGER, "minimum": 1, "exclusiveMinimum": True}, {**INTEGER, "exclusiveMinimum": 1}),
        ("llamacpp", {"type": "string", "minLength": 1001}, STRING),
        ("llamacpp", {"type": "string", "minLength": math.inf}, STRING),
        ("llamacpp", {"allOf": [STRING]}, STRING),
        ("llamacpp", {"allOf": [inside(INTEGER), {"properties": {"b": STRING}}]},
         {"type": "object", "properties": {"a": INTEGER, "b": STRING}}),
        ("llamacpp", {"anyOf": []}, ANY_TYPE),
        ("llamacpp", {"enum": []}, ANY_TYPE),
        ("llamacpp", {"enum": [f"v{i}" for i in range(1001)]}, STRING),
        ("llamacpp", {"properties": {f"p{i}": INTEGER for i in range(201)}}, {"type": "object"}),
        ("llamacpp", {"type": "nonsense"}, ANY_TYPE),
        ("llamacpp", {"$ref": "#/$defs/missing"}, ANY_TYPE),
    ],
)  # fmt: skip
def test_keywords_that_a_server_refuses_or_chokes_on_are_left_out(kind: str, schema: Any, lowered: Any) -> None:
    assert inside(lowered) == lower(inside(schema), kind)


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
@pytest.mark.parametrize(
    ("reference", "more"),
    [
        ("#", {}),
        ("#here", {"$defs": {"A": {"$anchor": "here", **INTEGER}}}),
        ("#/definitions/a~1b", {"definitions": {"a/b": INTEGER}}),
        ("#/properties/b", {}),
        ("Tree", {"$id": "Tree"}),
    ],
)
def test_every_reference_becomes_a_pointer_into_defs(kind: str, reference: str, more: JsonObject) -> None:
    lowered = lower({"properties": {"a": {"$ref": reference}, "b": STRING}, **more}, kind)
    pointer = lowered["properties"]["a"]["$ref"]
    assert pointer.startswith("#/$defs/")
    assert pointer.removeprefix("#/$defs/") in lowered["$defs"]


@pytest.mark.parametrize("kind", ["vllm", "llamacpp"])
def test_definitions_with_equal_names_stay_apart(kind: str) -> None:
    """Also where one has the name that another would get by a number after its own."""
    targets = {
        "#/$defs/a/$defs/D": INTEGER,
        "#/$defs/D_2": STRING,
        "#/$defs/b/$defs/D": {"type": "null"},
        "#/$defs/D_1": {"type": "boolean"},
        "#/$defs/c/$defs/D": {"type": "number"},
    }
    definitions: JsonObject = {
        **{name: {"$defs": {"D": targets[f"#/$defs/{name}/$defs/D"]}} for name in "abc"},
        **{name: targets[f"#/$defs/{name}"] for name in ("D_1", "D_2")},
    }
    schema = {"properties": {name: {"$ref": name} for name in targets}, "$defs": definitions}
    lowered = lower(schema, kind)
    pointers = {name: one["$ref"].removeprefix("#/$defs/") for name, one in lowered["properties"].items()}
    assert targets == {name: lowered["$defs"][pointer] for name, pointer in pointers.items()}


def taken_by_tgi(schema: JsonObject) -> JsonObject:
    """Lower a schema, check it with TGI's compiler as a format and as a tool, and return the format."""
    found = tgi_response_format(schema)
    if found["type"] == "json_object":
        assert PATIENCE_S >= compile_schema(found["value"])
    assert PATIENCE_S >= compile_tools([{"name": "f", "parameters": tgi_parameters(schema)}])
    return found


@hypothesis_settings(max_examples=300, deadline=None)
@given(ANY_SCHEMA)
def test_tgi_takes_every_lowered_schema_within_bounds(schema: JsonObject) -> None:
    try:
        check_bounds(form(schema), SchemaSettings())
    except InvalidRequest:
        return
    json.dumps(taken_by_tgi(schema))
    for kind in ("vllm", "llamacpp"):
        json.dumps(lower(schema, kind))


def supported(inner: st.SearchStrategy[JsonObject]) -> st.SearchStrategy[JsonObject]:
    """Schemas that TGI can enforce completely."""
    named = st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3)
    objects = named.flatmap(
        lambda properties: st.builds(
            lambda required: {"type": "object", "properties": properties, "required": sorted(required)},
            st.sets(st.sampled_from(sorted(properties))),
        )
    )
    # Without maxItems, which multiplies what is in it and may be left out.
    arrays = st.builds(lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.just(1))
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
    return objects | arrays | unions


SUPPORTED = st.recursive(
    st.sampled_from(
        [
            INTEGER, STRING, {"type": "number"}, {"type": "boolean"}, {"type": "null"}, {"enum": ["a", 1, None]},
            {"const": {"x": 1}}, {"type": "string", "format": "date-time"}, {"type": ["string", "null"]},
            {"type": "string", "pattern": r"^\d{2}-[a-f]+$"}, {"type": "string", "minLength": 1, "maxLength": 4},
            {"$ref": "#/$defs/Node"}, {"allOf": [{"$ref": "#/$defs/Leaf"}]}, {"type": "array", "maxItems": 0},
            {"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 3},
        ]
    ),
    supported,
    max_leaves=8,
)  # fmt: skip
DEFINITIONS = {
    "Leaf": {"enum": ["l", 2]},
    "Node": {
        "type": "object",
        "properties": {"v": INTEGER, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
        "required": ["v", "next"],
    },
}


@hypothesis_settings(max_examples=200, deadline=None)
@given(SUPPORTED, st.binary(min_size=1, max_size=8))
def test_answers_under_a_schema_that_tgi_can_enforce_keep_the_callers_schema(schema: JsonObject, key: bytes) -> None:
    whole = inside(schema, required=["a"], **{"$defs": DEFINITIONS})
    found = taken_by_tgi(whole)
    if found["type"] == "json_object":
        drawn = json.loads(Grammar(schema=found["value"]).obey(key))
        assert jsonschema_rs.is_valid(whole, drawn, offline=True)


@given(st.binary(min_size=1, max_size=8))
def test_answers_under_the_expression_of_any_object_are_objects(key: bytes) -> None:
    assert isinstance(json.loads(Grammar(regex=ANY_OBJECT).obey(key)), dict)
    assert isinstance(json.loads(Grammar(regex=ANY_ARRAY).obey(key)), list)


def test_requests_without_schemas_are_not_lowered() -> None:
    assert () == Sampling().tools
    check_bounds(Sampling(), SchemaSettings())
