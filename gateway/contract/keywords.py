"""Readings of single keywords that every lowering needs; a malformed keyword counts as absent."""

from __future__ import annotations

import math

from gateway.types import JsonObject

TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
# Keywords that imply the type that a schema does not name.
_IMPLIED = {
    "object": ("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": NUMBERS,
}


def types_of(schema: JsonObject) -> list[str]:
    """Return the types that a schema allows, said or implied; empty if it leaves them open."""
    given = schema.get("type")
    named = given if isinstance(given, list) else [given]
    known = [name for name in named if isinstance(name, str) and name in TYPES]
    if known or given is not None:
        return list(dict.fromkeys(known))
    return next(([name] for name, words in _IMPLIED.items() if any(word in schema for word in words)), [])


def count_of(schema: JsonObject, keyword: str) -> int | None:
    """Return a whole number of at least 0; None if there is none."""
    value = schema.get(keyword)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def number_of(schema: JsonObject, keyword: str) -> float | None:
    """Return a finite number; None if there is none, or one that a server would choke on."""
    value = schema.get(keyword)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return None if keyword == "multipleOf" and value <= 0 else value


def required_of(schema: JsonObject) -> list[str]:
    value = schema.get("required")
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def schemas_of(schema: JsonObject, keyword: str) -> list[object]:
    value = schema.get(keyword)
    return [inner for inner in value if isinstance(inner, (dict, bool))] if isinstance(value, list) else []


def map_of(schema: JsonObject, keyword: str) -> JsonObject:
    value = schema.get(keyword)
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: inner for name, inner in pairs if isinstance(inner, (dict, bool))}


def type_of(value: object) -> str:
    """Return the type of a JSON value, in JSON Schema's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def has_type(value: object, types: list[str]) -> bool:
    """Return whether a value has one of the types; a whole number is a number too, and no types are all."""
    found = type_of(value)
    whole = isinstance(value, float) and value.is_integer()
    return not types or found in types or (found == "integer" and "number" in types) or (whole and "integer" in types)


def merged(first: JsonObject, second: JsonObject) -> JsonObject:
    """Return one schema that demands what both demand, as far as possible; else the first one's keyword stands."""
    out = {**second, **first}
    for keyword in ("properties", "patternProperties"):
        ours, theirs = first.get(keyword), second.get(keyword)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            both = {name: {"allOf": [ours[name], theirs[name]]} for name in ours if name in theirs}
            out[keyword] = {**ours, **theirs, **both}
    if "required" in first and "required" in second:
        out["required"] = list(dict.fromkeys([*required_of(first), *required_of(second)]))
    if first.get("type") is not None and second.get("type") is not None:
        ours, theirs = types_of({"type": first["type"]}), types_of({"type": second["type"]})
        shared = [name for name in ours if name in theirs or (name == "integer" and "number" in theirs)]
        shared += [name for name in theirs if name == "integer" and "number" in ours and name not in shared]
        out["type"] = shared[0] if len(shared) == 1 else shared or first["type"]
    if isinstance(first.get("enum"), list) and isinstance(second.get("enum"), list):
        out["enum"] = [value for value in first["enum"] if value in second["enum"]]
    for keyword in (*NUMBERS, *COUNTS):
        bounds = [found for found in (number_of(first, keyword), number_of(second, keyword)) if found is not None]
        if len(bounds) == 2 and keyword != "multipleOf":
            out[keyword] = min(bounds) if "ax" in keyword else max(bounds)
    return out
