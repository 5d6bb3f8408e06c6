"""Check an answer against its request: the caller's own schemas, tools and tool choice.

jsonschema-rs does it: its regular expressions take linear time, and with ``offline`` it fetches nothing. A schema that
cannot be checked (no draft knows it) counts as kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import orjson

from gateway.contract.bounds import Measurer
from gateway.contract.lowering import schema_of
from gateway.errors import InvalidRequest
from gateway.settings import SchemaSettings
from gateway.types import Answer, JsonObject, Sampling, Unusable

# The draft that the schema names, or else the newest; then older drafts.
_BUILDERS: tuple[Callable[..., Any], ...] = (
    jsonschema_rs.validator_for,
    jsonschema_rs.Draft202012Validator,
    jsonschema_rs.Draft7Validator,
    jsonschema_rs.Draft4Validator,
)
# The second engine knows look-arounds and back references, and gives up in time.
_ENGINES = (jsonschema_rs.RegexOptions(), jsonschema_rs.FancyRegexOptions(backtrack_limit=10_000))
_MOST_STEPS = 10_000_000  # a schema's values times an answer's: about 0.3 s

# Client libraries read these formats more widely than their RFCs: pydantic takes a time without a zone.
_TIME = r"\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)?"
_WIDER = {
    "date-time": re.compile(rf"\d{{4}}-\d\d-\d\d[Tt ]{_TIME}"),
    "time": re.compile(_TIME),
    "duration": re.compile(r"[-+]?P(?=.)(\d+(\.\d+)?[YMWD])*(T(\d+(\.\d+)?[HMS])+)?"),
    "uri": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+"),
}
_FORMATS: dict[str, Callable[[str], bool]] = {
    name: lambda text, wider=wider: wider.fullmatch(text) is not None  # type: ignore[misc]
    for name, wider in _WIDER.items()
}


class Contract:
    """A request's demands on its answers, as the caller wrote them. Validators are built when first needed."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        form = sampling.response_format
        self._form = None if form is None or form.get("type") == "text" else form
        self._checks: dict[str | None, _Check] = {}

    def broken_by(self, answer: Answer) -> Unusable | None:
        """Return the first reason why the answer cannot be used; None if it can."""
        if answer.finish_reason == "content_filter":
            return Unusable.FILTERED
        if not answer.tool_calls and not (answer.text or "").strip():
            return Unusable.EMPTY
        if answer.finish_reason == "length":
            return Unusable.CUT
        if answer.tool_calls or self._sampling.tools:
            return self._tools_broken_by(answer)
        return None if self._form is None else self._format_broken_by(answer.text or "")

    def _tools_broken_by(self, answer: Answer) -> Unusable | None:
        choice = self._sampling.tool_choice
        if not answer.tool_calls:
            if choice not in (None, "auto", "none"):
                return Unusable.NO_CALL
            return None if self._form is None else self._format_broken_by(answer.text or "")
        if choice == "none":
            return Unusable.UNWANTED_CALL
        tools = {tool["function"]["name"]: tool["function"] for tool in self._sampling.tools}
        named = choice["function"]["name"] if isinstance(choice, dict) else None
        for call in answer.tool_calls:
            name = call["function"]["name"]
            if name not in tools or named not in (None, name):
                return Unusable.UNKNOWN_TOOL
            arguments = _parsed(call["function"]["arguments"])
            if not isinstance(arguments, dict):
                return Unusable.ARGUMENTS_NOT_JSON
            if not self._check(name, tools[name].get("parameters")).holds(arguments, call["function"]["arguments"]):
                return Unusable.ARGUMENTS
        return None

    def _format_broken_by(self, text: str) -> Unusable | None:
        assert self._form is not None
        value = _parsed(text)
        if value is _NOT_JSON:
            return Unusable.NOT_JSON
        schema = schema_of(self._form)
        if schema is None:
            return None if isinstance(value, dict) else Unusable.SCHEMA
        return None if self._check(None, schema).holds(value, text) else Unusable.SCHEMA

    def _check(self, name: str | None, schema: JsonObject | None) -> _Check:
        found = self._checks.get(name)
        if found is None:
            found = self._checks[name] = _Check(schema)
        return found


class _Check:
    """One schema's validator, and the cost of using it."""

    def __init__(self, schema: JsonObject | None) -> None:
        self._schema = schema
        self._validator = None if schema is None else _validator(schema)
        self._values: int | None = None

    def holds(self, value: object, text: str) -> bool:
        """Return whether the value keeps the schema; True if that would take too long to find out."""
        if self._validator is None or self._schema is None:
            return True
        if (items := text.count(",")) > 100:
            if self._values is None:
                self._values = _values_of(self._schema)
            if items * self._values > _MOST_STEPS:
                return True
        try:
            return bool(self._validator.is_valid(value))
        except ValueError:  # deeper than it looks
            return True


def _validator(schema: JsonObject) -> Any:
    """Return the schema's validator; None if no draft and no engine can read it."""
    for build in _BUILDERS:
        for engine in _ENGINES:
            try:
                return build(schema, formats=_FORMATS, validate_formats=True, pattern_options=engine, offline=True)
            except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
                continue
        schema = {name: each for name, each in schema.items() if name != "$schema"}
    return None


def _values_of(schema: JsonObject) -> int:
    try:
        return Measurer("schema", schema, SchemaSettings()).measure().expanded
    except InvalidRequest:
        return _MOST_STEPS


_NOT_JSON = object()


def _parsed(text: str) -> object:
    try:
        return orjson.loads(text)
    except ValueError:
        return _NOT_JSON
