"""TGI's schema compiler: what it turns into a regular expression, what it refuses, and what ends its process.

The first keyword that it knows decides, in its own order; everything beside that one is ignored.
"""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import orjson

from tests.stubs.tgi_errors import TgiError, invalid

STACK = 100
"""So many schemas within each other, references followed, overflow the router's stack."""
DEEP = 120
"""So many levels of JSON are more than its parser reads."""
FORMATS = ("date-time", "date", "time", "uuid")
SECONDS_A_CHARACTER = 0.035
"""The model server compiles so long for each character that a text's length is bounded to."""
PATIENCE_S = 4.0
"""A schema that compiles for longer is one that a caller must not be able to send."""
_NOT_COMPILED = re.compile(r"\\[bBpP1-9]|\(\?[<=!]|\^|\$")


class StackOverflow(Exception):
    """The router's process ends."""


def compile_schema(schema: Any) -> float:
    """Compile a response format's schema.

    Returns:
        Seconds for which the model server would do nothing else.

    Raises:
        TgiError: It is refused.
        StackOverflow: It ends the process.
    """
    try:
        jsonschema_rs.meta.validate(schema)
    except jsonschema_rs.ValidationError as error:
        raise invalid(f"grammar is not valid: {error.message}") from error
    if "properties" not in schema:
        raise invalid("grammar is not valid: Grammar must have a 'properties' field")
    return _Compiler(schema).seconds(schema, 0)


def compile_tools(functions: list[dict[str, Any]]) -> float:
    """Compile the one schema that TGI makes of all tools; only the ``properties`` of their parameters are in it."""
    named: dict[str, Any] = {}
    for function in functions:
        given = function.get("parameters", function.get("arguments"))
        properties = given.get("properties") if isinstance(given, dict) else None
        name = {"_name": {"type": "string", "const": function["name"]}}
        named[function["name"]] = {"type": "object", "properties": {**name, **(properties or {})}}
    choice = {"anyOf": [{"$ref": f"#/$functions/{name}"} for name in named]}
    whole = {"$functions": named, "properties": {"function": choice}}
    return _Compiler(whole).seconds(whole, 0)


class _Compiler:
    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root

    def seconds(self, schema: Any, depth: int) -> float:
        if depth > STACK:
            raise StackOverflow
        if not isinstance(schema, dict):
            raise _unsupported(schema)
        if not schema:
            # Its alternatives are not bracketed: an answer with broken JSON is let through.
            return 1.0
        for keyword in ("properties", "allOf", "anyOf", "oneOf", "prefixItems", "enum", "const", "$ref", "type"):
            if keyword in schema:
                return float(getattr(self, f"_{keyword.removeprefix('$')}")(schema, depth))
        raise _unsupported(schema)

    def _properties(self, schema: dict[str, Any], depth: int) -> float:
        return sum((self.seconds(inner, depth + 1) for inner in schema["properties"].values()), 0.0)

    def _anyOf(self, schema: dict[str, Any], depth: int) -> float:
        [parts] = [schema[name] for name in ("allOf", "anyOf", "oneOf", "prefixItems") if name in schema][:1]
        return sum(self.seconds(inner, depth + 1) for inner in parts)

    _allOf = _oneOf = _prefixItems = _anyOf

    def _enum(self, schema: dict[str, Any], depth: int) -> float:
        for value in schema["enum"]:
            _refuse_structure(value, "enum")
        return 0.0

    def _const(self, schema: dict[str, Any], depth: int) -> float:
        _refuse_structure(schema["const"], "const")
        return 0.0

    def _ref(self, schema: dict[str, Any], depth: int) -> float:
        if not schema["$ref"].startswith("#"):
            raise _refused(f"External references are not supported: {schema['$ref']}")
        part: Any = self._root
        for name in filter(None, schema["$ref"][1:].split("/")):
            if not isinstance(part, dict) or name not in part:
                raise _refused(f"Invalid reference path: {name}")
            part = part[name]
        return self.seconds(part, depth + 1)

    def _type(self, schema: dict[str, Any], depth: int) -> float:
        kind = schema["type"]
        if not isinstance(kind, str):
            raise _refused("'type' must be a string")
        match kind:
            case "string":
                return _string(schema)
            case "array" if "items" in schema:
                return self.seconds(schema["items"], depth + 1) * float(max(1, schema.get("maxItems", 1)))
            case "object" if isinstance(schema.get("additionalProperties"), dict):
                return self.seconds(schema["additionalProperties"], depth + 1)
            case "array" | "object":
                return 1.0
        return 0.0


def _string(schema: dict[str, Any]) -> float:
    if "minLength" in schema or "maxLength" in schema:
        return float(max(schema.get("minLength", 0), schema.get("maxLength", 0))) * SECONDS_A_CHARACTER
    if "pattern" in schema:
        pattern = schema["pattern"].removeprefix("^").removesuffix("$")
        # The router takes it; every request of the same prefill then fails in the model server.
        if _NOT_COMPILED.search(re.sub(r"\[\^", "[", pattern)):
            raise TgiError("generation", "Request failed during generation: Server error: regex parse error")
    elif "format" in schema and schema["format"] not in FORMATS:
        raise _refused(f"Format {schema['format']} is not supported by Outlines")
    return 0.0


def _refuse_structure(value: Any, keyword: str) -> None:
    if isinstance(value, dict | list):
        raise _refused(f"Unsupported data type in {keyword}: {_debugged(value)}")


def _debugged(value: Any) -> str:
    """A JSON value as Rust prints it for programmers."""
    match value:
        case dict():
            return "Object {" + ", ".join(f'"{name}": {_debugged(inner)}' for name, inner in value.items()) + "}"
        case list():
            return "Array [" + ", ".join(map(_debugged, value)) + "]"
        case bool():
            return f"Bool({str(value).lower()})"
        case int() | float():
            return f"Number({value})"
        case None:
            return "Null"
    return f'String("{value}")'


def _unsupported(schema: Any) -> TgiError:
    shown = orjson.dumps(schema).decode()
    return _refused(
        f"Unsupported JSON Schema structure {shown} \nMake sure it is valid to the JSON Schema specification and check "
        "if it's supported by Outlines.\nIf it should be supported, please open an issue."
    )


def _refused(reason: str) -> TgiError:
    return invalid(f"cannot compile regex from schema: {reason}")
