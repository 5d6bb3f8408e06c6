"""Lowers a request's schemas to what one kind of server can take. What is left out is checked on the answers."""

from __future__ import annotations

from collections.abc import Callable

from gateway.contract.by_reference import Dialect, by_reference
from gateway.contract.inlined import inlined
from gateway.contract.json_regex import ANY_ARRAY, ANY_OBJECT, ANY_VALUE
from gateway.contract.keywords import TYPES, names_of
from gateway.contract.patterns import Pattern
from gateway.types import JsonObject

_ANYTHING_BUT = frozenset(
    {
        "not",
        "if",
        "then",
        "else",
        "dependentSchemas",
        "dependentRequired",
        "dependencies",
        "unevaluatedItems",
        "unevaluatedProperties",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "patternProperties",
        "minProperties",
        "maxProperties",
        "additionalItems",
        "multipleOf",
        "contentSchema",
    }
)
# Formats that xgrammar, vLLM's default, can enforce; another sends the whole schema to a slower engine.
_VLLM_FORMATS = frozenset({"email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri"})


def _vllm_takes(pattern: Pattern) -> bool:
    return pattern.portable and pattern.size <= 1_000


def _llamacpp_takes(pattern: Pattern) -> bool:
    # Counted repeats within each other can be read in many ways, of which it follows each: seen to hang for ever.
    return pattern.portable and pattern.repeats <= 1_000 and pattern.nested <= 16


DIALECTS = {
    "vllm": Dialect(
        left_out=_ANYTHING_BUT,
        takes_pattern=_vllm_takes,
        formats=_VLLM_FORMATS,
        any_value={},
        most_count=10_000,
        most_optional=2_000,
        most_enum=2_000,
    ),
    "llamacpp": Dialect(
        left_out=_ANYTHING_BUT,
        takes_pattern=_llamacpp_takes,
        formats=None,
        any_value={"type": [name for name in TYPES if name != "integer"]},
        most_count=1_000,
        most_optional=200,
        most_enum=1_000,
    ),
}


def schema_of(response_format: JsonObject) -> JsonObject | None:
    """The JSON schema in OpenAI's ``json_schema`` response format; None where any object will do."""
    named = response_format.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    return schema if isinstance(schema, dict) else None


def lower(schema: JsonObject, kind: str) -> JsonObject:
    """A schema as vLLM or llama.cpp takes it."""
    return by_reference(schema, DIALECTS[kind])


def lower_tools(tools: tuple[JsonObject, ...], lowered: Callable[[JsonObject], JsonObject]) -> list[JsonObject]:
    """Tools with their parameters lowered."""
    return [
        {**tool, "function": {**tool["function"], "parameters": lowered(tool["function"]["parameters"])}}
        if isinstance(tool["function"].get("parameters"), dict)
        else tool
        for tool in tools
    ]


def tgi_parameters(schema: JsonObject) -> JsonObject:
    """A tool's parameters for text-generation-inference: an object with properties, whatever else it was."""
    return _with_properties(inlined(schema)) or {"type": "object", "properties": {}}


def tgi_response_format(schema: JsonObject | None) -> JsonObject:
    """A response format for text-generation-inference.

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
    """The schema with properties at its top; of several objects one that admits each. None where there is none."""
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
    required = [name for name in properties if all(name in names_of(branch) for branch in branches)]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}
