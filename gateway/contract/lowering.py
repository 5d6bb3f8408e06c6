"""Lower a request's schemas to what one kind of server takes. The rest is checked on the answers."""

from __future__ import annotations

from collections.abc import Callable

from gateway.contract.by_reference import Dialect, by_reference
from gateway.contract.inlined import inlined
from gateway.contract.json_regex import ANY_ARRAY, ANY_OBJECT, ANY_VALUE
from gateway.contract.keywords import TYPES, required_of
from gateway.contract.patterns import Pattern
from gateway.types import JsonObject

_LEFT_OUT_WORDS = """
not if then else dependentSchemas dependentRequired dependencies unevaluatedItems unevaluatedProperties contains
minContains maxContains uniqueItems propertyNames patternProperties minProperties maxProperties additionalItems
multipleOf contentSchema
"""
_LEFT_OUT = frozenset(_LEFT_OUT_WORDS.split())
# Formats that xgrammar, vLLM's default, enforces; any other sends the whole schema to a slower engine.
_VLLM_FORMATS = frozenset({"email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri"})


def _vllm_takes(pattern: Pattern) -> bool:
    return pattern.portable and pattern.size <= 1_000


def _llamacpp_takes(pattern: Pattern) -> bool:
    # It follows each of the many ways to read counted repeats within each other: seen to hang.
    return pattern.portable and pattern.repeats <= 1_000 and pattern.nested <= 16


DIALECTS = {
    "vllm": Dialect(
        left_out=_LEFT_OUT,
        takes_pattern=_vllm_takes,
        formats=_VLLM_FORMATS,
        any_value={},
        most_count=10_000,
        most_optional=2_000,
        most_enum=2_000,
    ),
    "llamacpp": Dialect(
        left_out=_LEFT_OUT,
        takes_pattern=_llamacpp_takes,
        formats=None,
        any_value={"type": [name for name in TYPES if name != "integer"]},
        most_count=1_000,
        most_optional=200,
        most_enum=1_000,
    ),
}


def schema_of(response_format: JsonObject) -> JsonObject | None:
    """Return the JSON schema in OpenAI's ``json_schema`` response format; None if any object will do."""
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    return schema if isinstance(schema, dict) else None


def lower(schema: JsonObject, kind: str) -> JsonObject:
    """Return a schema as vLLM or llama.cpp takes it."""
    return by_reference(schema, DIALECTS[kind])


def lower_tools(tools: tuple[JsonObject, ...], lowered: Callable[[JsonObject], JsonObject]) -> list[JsonObject]:
    return [
        {**tool, "function": {**tool["function"], "parameters": lowered(tool["function"]["parameters"])}}
        if isinstance(tool["function"].get("parameters"), dict)
        else tool
        for tool in tools
    ]


def tgi_parameters(schema: JsonObject) -> JsonObject:
    """Return a tool's parameters for text-generation-inference: always an object with properties."""
    return _with_properties(inlined(schema)) or {"type": "object", "properties": {}}


def tgi_response_format(schema: JsonObject | None) -> JsonObject:
    """Return a response format for text-generation-inference.

    It takes no schema without properties at its top: such a one becomes an expression of any object, array or value.
    """
    lowered: JsonObject | None = {"type": "object"} if schema is None else inlined(schema)
    if (value := _with_properties(lowered)) is not None:
        return {"type": "json_object", "value": value}
    branches = [] if lowered is None else lowered.get("anyOf", [lowered])
    types = {branch.get("type") for branch in branches} or {"object"}
    expression = ANY_OBJECT if types == {"object"} else ANY_ARRAY if types == {"array"} else ANY_VALUE
    return {"type": "regex", "value": expression}


def _with_properties(schema: JsonObject | None) -> JsonObject | None:
    """Return the schema with properties at its top, one that admits each of several objects; None if it has none."""
    if schema is None or "properties" in schema:
        return schema
    branches = schema.get("anyOf", [])
    if not branches or not all("properties" in branch for branch in branches):
        return None
    properties: JsonObject = {}
    for branch in branches:
        for name, inner in branch["properties"].items():
            known = properties.get(name)
            if known is None or known == inner:
                properties[name] = inner
            else:
                alternatives = known["anyOf"] if set(known) == {"anyOf"} else [known]
                properties[name] = {"anyOf": [*alternatives, *([] if inner in alternatives else [inner])]}
    required = [name for name in properties if all(name in required_of(branch) for branch in branches)]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}
