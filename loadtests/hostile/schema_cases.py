"""Schemas that a server would compile for minutes, hang on or end by, and everyday ones that it must still be given.

Each is sent as a response format and as a tool's parameters, to three kinds of backend: the stub of TGI, which refuses
what TGI's compiler refuses and ends by a recursion, the stub of vLLM, and the real llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadtests.hostile.case import Case, Kind, ask, words

INTEGER = {"type": "integer"}
_WITHIN_S = 1.0


def _inside(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **more}


def _text(pattern: str) -> dict[str, Any]:
    return _inside({"type": "string", "pattern": pattern})


def _doubled(times: int) -> dict[str, Any]:
    part = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}] * 2} for i in range(1, times + 1)}
    return _inside({"$ref": f"#/$defs/d{times}"}, **{"$defs": {**part, "d0": INTEGER}})


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = INTEGER
    for _ in range(levels):
        schema = _inside(schema)
    return schema


def _arrays(levels: int, count: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "maxLength": count}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, "minItems": count, "maxItems": count}
    return _inside(schema)


def _all_to_all(count: int, keyword: str) -> dict[str, Any]:
    names = [f"d{i}" for i in range(count)]
    part = {name: {keyword: [{"$ref": f"#/$defs/{other}"} for other in names]} for name in names}
    return _inside({"$ref": "#/$defs/d0"}, **{"$defs": part})


def _bombs(canary_port: int) -> dict[str, dict[str, Any]]:
    """Return schemas that no server may get."""
    return {
        "billion": _doubled(30),
        "octillion": _doubled(90),
        "deep": _nested(80),
        "properties": _inside({"properties": {f"p{i}": {} for i in range(5_001)}}),
        "enum": _inside({"enum": list(range(2_001))}),
        "values": _inside(INTEGER, examples=[0] * 50_000),
        "bytes": _inside({"type": "string", "description": "x" * 400_000}),
        "repeats": _text("^(((a{0,100}){0,100}){0,100}){0,100}$"),
        "repeats-in-a-row": _text("^" + "a{9000}" * 9 + "$"),
        "repeats-of-repeats": _text("^a{200}{200}$"),
        "arrays": _arrays(5, 1_000),
        "all-to-all": _all_to_all(30, "anyOf"),
        "circle": _all_to_all(8, "allOf"),
        "circle-of-one": _inside({"$ref": "#/$defs/N"}, **{"$defs": {"N": {"$ref": "#/$defs/N"}}}),
        "pattern-long": _text("a" * 2_001),
        "pattern-unreadable": _text("^(a"),
        "pattern-property": _inside({"patternProperties": {"^(a{300}){300}$": INTEGER}}),
        "fetch": _inside({"$ref": f"http://127.0.0.1:{canary_port}/schema.json"}),
        "file": _inside({"$ref": "file:///etc/passwd"}),
    }


def _strange() -> dict[str, dict[str, Any]]:
    """Return schemas that each server gets in the form that it can take."""
    node = {"type": "object", "properties": {"v": INTEGER, "n": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}}}
    return {
        "recursive": _inside({"$ref": "#/$defs/N"}, **{"$defs": {"N": node}}),
        "recursive-root": _inside({"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        "recursive-endless": _inside({"$ref": "#/$defs/N"}, **{"$defs": {"N": _inside({"$ref": "#/$defs/N"})}}),
        "recursive-tool": _inside({"$ref": "#/$functions/f"}),
        "pattern-catastrophic": _text("^(a+)+$"),
        "pattern-nullable": _text("^((a*)*)*$"),
        "pattern-counts": _text("^(a{0,100}){0,50}$"),
        "pattern-look-ahead": _text("^(?=a)a+$"),
        "pattern-reference": _text(r"^(a+)\1$"),
        "pattern-boundary": _text(r"\bab\b"),
        "pattern-unicode": _text(r"^\p{L}+$"),
        "pattern-flags": _text("^(?i)abc$"),
        "pattern-length": _inside({"type": "string", "pattern": "^a+$", "minLength": 5, "maxLength": 9}),
        "long-text": _inside({"type": "string", "maxLength": 100_000}),
        "long-least": _inside({"type": "string", "minLength": 100_000}),
        "long-list": _inside({"type": "array", "items": INTEGER, "maxItems": 100_000}),
        "long-enum": _inside({"enum": [f"value {i}" for i in range(2_000)]}),
        "optional": {"type": "object", "properties": {f"p{i}": INTEGER for i in range(1_000)}},
        "doubled": _doubled(10),
        "anything": _inside({}),
        "true": _inside(True),
        "title": _inside({"title": "A"}),
        "not": _inside({"not": {"type": "null"}}),
        "types": _inside({"type": ["integer", "null"]}),
        "constant": _inside({"const": {"x": [1, {"y": None}]}}),
        "nonsense": _inside({"type": "nonsense", "minimum": "x", "required": 3, "enum": []}),
        "format": _inside({"type": "string", "format": "email"}),
        "nowhere": _inside({"$ref": "#/$defs/missing"}),
    }


def cases(canary_port: int) -> Iterator[Case]:
    """Return every schema as format and as tool, for each kind of backend."""
    groups: dict[Kind, str] = {"tgi": "schema", "vllm": "vllm", "llamacpp": "llamacpp"}
    for kind, group in groups.items():
        # The template of the embedded model has no place for tools: they are dropped, or refused by name.
        tools = "200 single,400" if kind == "llamacpp" else "200 single"
        for name, schema in _bombs(canary_port).items():
            yield from _both(kind, f"{group}-{name}", f"A schema too much for a server: {name}.", schema, "400", "400")
        for name, schema in _strange().items():
            told = f"A schema that not every server takes: {name}."
            yield from _both(kind, f"{group}-{name}", told, schema, "200 single", tools)


def _both(kind: Kind, name: str, tried: str, schema: Any, as_format: str, as_tool: str) -> Iterator[Case]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for place, allowed, fields in (
        ("format", as_format, {"response_format": form}),
        ("tool", as_tool, {"tools": [tool], "tool_choice": "required"}),
    ):
        yield Case(
            id=f"{name}-{place}",
            tried=tried,
            allowed=words(allowed),
            send=(ask(**fields),),
            kind=kind,
            within_s=_WITHIN_S,
        )
