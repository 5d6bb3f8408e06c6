"""Bounds on schemas, each at its limit and just over it; and no schema takes long to measure."""

import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.contract import bounds
from gateway.contract.bounds import check_bounds
from gateway.errors import InvalidRequest
from gateway.settings import SchemaSettings
from gateway.types import JsonObject, Sampling

INTEGER = {"type": "integer"}


def form(schema: JsonObject) -> Sampling:
    return Sampling(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def tool(*schemas: JsonObject) -> Sampling:
    return Sampling(
        tools=tuple({"type": "function", "function": {"name": "f", "parameters": schema}} for schema in schemas)
    )


def refusal(sampling: Sampling, **limits: int) -> str | None:
    """Return the words of a refusal, which begin with the field."""
    settings = SchemaSettings(**{name: limit for name, limit in limits.items() if name in SchemaSettings.model_fields})
    with pytest.MonkeyPatch.context() as patch:
        for name in limits.keys() - SchemaSettings.model_fields.keys():
            patch.setattr(bounds, name, limits[name])
        try:
            check_bounds(sampling, settings)
        except InvalidRequest as error:
            return error.message if error.message.startswith(f"{error.param}: ") else "the field is missing"
    return None


def inside(schema: Any, **more: Any) -> JsonObject:
    return {"type": "object", "properties": {"a": schema}, **more}


def doubled(times: int) -> JsonObject:
    """Return a schema in which each definition refers to the one before twice: 2 ** times in all."""
    part = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, times + 1)}
    return {"$ref": f"#/$defs/d{times}", "$defs": {**part, "d0": INTEGER}}


def nested(levels: int) -> JsonObject:
    schema: JsonObject = INTEGER
    for _ in range(levels - 1):
        schema = inside(schema)
    return schema


def arrays(*counts: Any) -> JsonObject:
    schema: JsonObject = INTEGER
    for count in counts:
        schema = {"type": "array", "items": schema, "maxItems": count}
    return schema


PROPERTIES: JsonObject = {"properties": {"a": {}, "b": {"properties": {"c": {}}}}}


@pytest.mark.parametrize(
    ("schema", "limit", "at", "words"),
    [
        (INTEGER, "max_bytes", 18, "bytes"),
        (nested(5), "max_depth", 5, "levels of nesting"),
        ({"enum": [1, [2, 3]]}, "MAX_VALUES", 6, "values"),
        (PROPERTIES, "max_properties", 3, "properties"),
        (inside({"enum": [1, 2]}, enum=[{}, {}, {}]), "max_enum_values", 5, "enum values"),
        (doubled(3), "MAX_EXPANDED", 30, "values once references are put in place"),
        (arrays(2, 3, 4), "MAX_REPEATS", 24, "repeats multiplied along a path"),
        ({"items": {"type": "string", "minLength": 5}, "minItems": 6}, "MAX_REPEATS", 30, "repeats multiplied"),
        ({"pattern": "(a{3}){4}"}, "MAX_PATTERN_PARTS", 12, "repeats in a pattern"),
        (
            {"properties": {"a": {"pattern": "abc"}, "b": {"pattern": "abcd"}}},
            "MAX_PATTERN_PARTS",
            7,
            "parts in patterns",
        ),
        ({"patternProperties": {"^a{9}$": {}}}, "MAX_PATTERN_PARTS", 9, "repeats in a pattern"),
    ],
)
def test_each_bound_is_exact(schema: JsonObject, limit: str, at: int, words: str) -> None:
    assert None is refusal(form(schema), **{limit: at})
    assert None is refusal(tool(schema), **{limit: at})
    found = refusal(form(schema), **{limit: at - 1})
    assert found is not None
    assert words in found
    assert f"over this server's limit of {at - 1:,}" in found
    assert "response_format.json_schema.schema: " in found
    assert "tools[0].function.parameters: " in (refusal(tool(schema), **{limit: at - 1}) or "")


def test_all_schemas_of_a_request_count_together() -> None:
    both = tool(PROPERTIES, PROPERTIES)
    assert None is refusal(both, max_properties=6)
    assert "tools[1].function.parameters: properties: 6, over" in (refusal(both, max_properties=5) or "")


def test_thirty_doublings_are_measured_quickly() -> None:
    started = time.perf_counter()
    assert "4,294,967,294" in (refusal(form(doubled(30)), max_depth=100) or "")
    assert 0.1 > time.perf_counter() - started


@pytest.mark.parametrize("sampling", [form(doubled(31)), tool(doubled(31)), form(doubled(60)), tool(nested(80))])
def test_the_default_settings_refuse_schema_bombs(sampling: Sampling) -> None:
    assert refusal(sampling)


def test_recursive_schemas_are_accepted() -> None:
    node = inside({"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]})
    assert None is refusal(form({"$ref": "#/$defs/N", "$defs": {"N": node}}))
    assert None is refusal(form(inside({"$ref": "#"})))


@pytest.mark.parametrize(
    "part",
    [
        {"N": {"$ref": "#/$defs/N"}},
        {"N": {"$ref": "#/$defs/M"}, "M": {"anyOf": [INTEGER, {"$ref": "#/$defs/N"}]}},
        {"N": {"allOf": [{"not": {"$ref": "#/$defs/N"}}]}},
        {
            "N": {"properties": {"n": {"$ref": "#/$defs/M"}}, "allOf": [{"$ref": "#/$defs/M"}]},
            "M": {"$ref": "#/$defs/N"},
        },
    ],
)
def test_a_schema_that_contains_itself_for_the_same_value_is_refused(part: JsonObject) -> None:
    """Checking it would never end: jsonschema-rs does not stop on eight parts that all contain each other."""
    schema = {"$ref": "#/$defs/N", "$defs": part}
    assert "contains itself for the same value" in (refusal(form(schema)) or "")
    assert "contains itself for the same value" in (refusal(tool(inside({}, **{"$defs": part, "items": schema}))) or "")


def test_schemas_that_all_refer_to_each_other_are_measured_quickly() -> None:
    names = [f"d{i}" for i in range(30)]
    part = {name: {"properties": {other: {"$ref": f"#/$defs/{other}"} for other in names}} for name in names}
    started = time.perf_counter()
    assert "values once references" in (refusal(form({"$ref": "#/$defs/d0", "$defs": part}), max_depth=100) or "")
    assert 0.2 > time.perf_counter() - started


@pytest.mark.parametrize("reference", ["http://127.0.0.1:9/x", "file:///etc/passwd", "other.json#/a", "//host/x"])
def test_a_reference_out_of_the_document_is_refused(reference: str) -> None:
    found = refusal(tool(inside({"$ref": reference})))
    assert found == (
        "tools[0].function.parameters: a $ref must point into the schema itself; nothing is fetched from elsewhere"
    )


@pytest.mark.parametrize(
    "schema",
    [
        inside({"$ref": "#name"}, **{"$defs": {"A": {"$anchor": "name", **INTEGER}}}),
        inside({"$ref": "Tree"}, **{"$id": "Tree"}),
        inside({"$ref": "#/definitions/a~1b"}, definitions={"a/b": INTEGER}),
        inside({"$ref": "#/$defs/missing"}),
        inside({"$ref": "#/allOf/0"}, allOf=[INTEGER]),
        inside({"$ref": "#/allOf/" + "9" * 5_000}, allOf=[INTEGER]),
    ],
)
def test_every_spelling_of_an_inner_reference_is_accepted(schema: JsonObject) -> None:
    assert None is refusal(form(schema))


@pytest.mark.parametrize("count", [math.inf, -1, 2.5, True, "9"])
def test_a_value_that_is_not_a_count_repeats_nothing(count: Any) -> None:
    assert None is refusal(form(arrays(count)), MAX_REPEATS=1)
    assert None is not refusal(form(arrays(2.0)), MAX_REPEATS=1)


def test_a_large_ordinary_schema_is_accepted() -> None:
    many = {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 100_000} for i in range(5_000)}}
    assert None is refusal(form(many))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["$ref", "$defs", "properties", "items", "anyOf", "allOf", "enum", "const", "type", "pattern", "maxItems",
             "required", "additionalProperties", "$id", "$anchor", "minLength", "prefixItems", "not", "a", "b"]
        ),
        inner | st.sampled_from(["#", "#/properties/a", "#/$defs/a", "object", "string", "^a{2}$"]),
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip
ANY_SCHEMA = st.dictionaries(
    st.sampled_from(["properties", "$defs", "items", "anyOf", "type", "$ref", "allOf"]), JSON_VALUES
)


@hypothesis_settings(max_examples=200, deadline=None)
@given(ANY_SCHEMA)
def test_any_schema_is_accepted_or_refused_in_words(schema: JsonObject) -> None:
    started = time.perf_counter()
    refusal(form(schema))
    assert 0.5 > time.perf_counter() - started
