"""Bounds on the schemas of a request, measured before anything expands them.

A server compiles a schema before it draws, while its other requests wait; some schemas take minutes, or crash it.
Measuring walks the document once: the size of expanded references is added up, and nothing is expanded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from gateway.contract.keywords import count_of
from gateway.contract.patterns import Unreadable, read_pattern
from gateway.contract.references import References, circular, reference_of, subschemas
from gateway.errors import InvalidRequest
from gateway.settings import SchemaSettings
from gateway.types import JsonObject, Sampling

MAX_VALUES = 50_000  # JSON values in all schemas of a request
MAX_EXPANDED = 20_000  # the same, once every reference is replaced by what it points to
MAX_REPEATS = 10**9  # counts (items, lengths) multiplied along a path of a schema
MAX_PATTERN_PARTS = 10_000  # of all patterns of a schema, once their repeats are written out
_CEILING = 10**15


@dataclass(frozen=True, slots=True)
class Measure:
    """The size of a schema.

    Attributes:
        expanded: Values once every reference is replaced by its target.
        levels: Schemas within schemas along the longest path, references followed.
        repeats: The largest product of counts (items, lengths) along a path, references followed.
        recursive: Paths by which the schema contains itself; 0 if it does not.
    """

    expanded: int
    levels: int
    repeats: int
    recursive: int


def check_bounds(sampling: Sampling, limits: SchemaSettings) -> None:
    """Refuse schemas that are too large for a server.

    Raises:
        InvalidRequest: Names the field, what was too large, and the limit.
    """
    if not sampling.tools and sampling.response_format is None:
        return
    totals = _Totals(limits)
    for where, schema in named_schemas(sampling):
        totals.add(where, schema)


def named_schemas(sampling: Sampling) -> Iterator[tuple[str, JsonObject]]:
    """Yield the schemas of a request, each with the field that holds it."""
    named = (sampling.response_format or {}).get("json_schema")
    if isinstance(named, dict) and isinstance(named.get("schema"), dict):
        yield "response_format.json_schema.schema", named["schema"]
    for index, tool in enumerate(sampling.tools):
        if isinstance(parameters := tool["function"].get("parameters"), dict):
            yield f"tools[{index}].function.parameters", parameters


class _Totals:
    """The size of all schemas of one request together."""

    def __init__(self, limits: SchemaSettings) -> None:
        self._limits = limits
        self._bytes = self._values = self._properties = self._enum_values = self._expanded = 0

    def add(self, where: str, schema: JsonObject) -> None:
        limits = self._limits
        try:
            self._bytes += len(orjson.dumps(schema))
        except TypeError:  # deeper than may be written, or not Unicode
            raise InvalidRequest(f"{where}: the schema cannot be written as JSON", param=where) from None
        _refuse_over(where, "bytes", self._bytes, limits.max_bytes)
        measure = Measurer(where, schema, limits).measure()
        self._count(where, schema)
        self._expanded += measure.expanded
        _refuse_over(where, "values once references are put in place", self._expanded, MAX_EXPANDED)
        _refuse_over(where, "repeats multiplied along a path", measure.repeats, MAX_REPEATS)

    def _count(self, where: str, schema: JsonObject) -> None:
        """Count the document's values and levels."""
        limits = self._limits
        waiting: list[tuple[object, int]] = [(schema, 1)]
        while waiting:
            value, depth = waiting.pop()
            self._values += 1
            if isinstance(value, dict):
                if isinstance(properties := value.get("properties"), dict):
                    self._properties += len(properties)
                waiting += [(inner, depth + 1) for inner in value.values()]
            elif isinstance(value, list):
                waiting += [(inner, depth + 1) for inner in value]
            else:
                continue
            if isinstance(value, dict) and isinstance(values := value.get("enum"), list):
                self._enum_values += len(values)
            _refuse_over(where, "levels of JSON", depth, 2 * limits.max_depth)
        _refuse_over(where, "values", self._values, MAX_VALUES)
        _refuse_over(where, "properties", self._properties, limits.max_properties)
        _refuse_over(where, "enum values", self._enum_values, limits.max_enum_values)


class Measurer:
    """Measures one schema, in the field ``where``: each part once, however many references lead to it."""

    def __init__(self, where: str, root: JsonObject, limits: SchemaSettings) -> None:
        self._where = where
        self._root = root
        self._limits = limits
        self._references = References(root)
        self._known: dict[int, Measure] = {}
        self._open: set[int] = set()
        self._pattern_parts = 0

    def measure(self) -> Measure:
        """Return the schema's measure.

        Raises:
            InvalidRequest: The schema is too deep, points outside itself or round in a circle, or has a pattern that is
                too large.
        """
        measure = self._measure(self._root, 1)
        if measure.recursive and circular(self._root, self._references):
            raise InvalidRequest(
                f"{self._where}: a part of the schema contains itself for the same value, so that nothing can keep it",
                param=self._where,
            )
        return measure

    def _measure(self, schema: object, level: int) -> Measure:
        if not isinstance(schema, dict):
            return Measure(1, 1, 1, 0)
        identity = id(schema)
        if identity in self._open:
            return Measure(1, 1, 1, 1)
        known = self._known.get(identity)
        levels = level if known is None else level + known.levels - 1
        _refuse_over(self._where, "levels of nesting", levels, self._limits.max_depth)
        if known is None:
            self._open.add(identity)
            parts = [self._measure(inner, level + 1) for inner in self._inner(schema)]
            self._open.discard(identity)
            known = self._known[identity] = Measure(
                min(1 + len(_list(schema, "enum")) + sum(part.expanded for part in parts), _CEILING),
                1 + max((part.levels for part in parts), default=0),
                min(self._repeats(schema) * max((part.repeats for part in parts), default=1), _CEILING),
                min(sum(part.recursive for part in parts), _CEILING),
            )
        return known

    def _inner(self, schema: JsonObject) -> Iterator[object]:
        yield from subschemas(schema)
        reference = reference_of(schema)
        if reference is None:
            return
        target = self._references.target(reference)
        if target is None and not (isinstance(reference, str) and reference.startswith("#")):
            raise InvalidRequest(
                f"{self._where}: a $ref must point into the schema itself; nothing is fetched from elsewhere",
                param=self._where,
            )
        if target is not None:
            yield target

    def _repeats(self, schema: JsonObject) -> int:
        """Return how often a schema repeats its contents; its pattern's repeats have a limit of their own."""
        patterns = [schema.get("pattern"), *_dict(schema, "patternProperties")]
        for pattern in patterns:
            if isinstance(pattern, str):
                self._refuse_large_pattern(pattern)
        counts = ("minItems", "maxItems", "minLength", "maxLength", "minProperties")
        return max(1, *(count_of(schema, keyword) or 0 for keyword in counts))

    def _refuse_large_pattern(self, pattern: str) -> None:
        try:
            found = read_pattern(pattern)
        except Unreadable as error:
            raise InvalidRequest(f"{self._where}: a pattern cannot be read: {error}", param=self._where) from None
        _refuse_over(self._where, "repeats in a pattern", found.repeats, MAX_PATTERN_PARTS)
        self._pattern_parts += found.size
        _refuse_over(self._where, "parts in patterns, repeats written out", self._pattern_parts, MAX_PATTERN_PARTS)


def _refuse_over(where: str, what: str, found: int, limit: int) -> None:
    if found > limit:
        number = f"{found:,}" if found < _CEILING else "beyond counting"
        raise InvalidRequest(f"{where}: {what}: {number}, over this server's limit of {limit:,}", param=where)


def _list(schema: JsonObject, keyword: str) -> list[object]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _dict(schema: JsonObject, keyword: str) -> JsonObject:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}
