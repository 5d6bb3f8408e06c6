"""Lower a schema for text-generation-inference: without references, one kind of structure in each place.

Its router turns the schema into a regular expression by the first keyword it knows. References are replaced by their
targets, and a schema that contains itself is unrolled a few times; at the last roll the part that would go on is left
out. So is what the server ignores or refuses: the answer is checked against the caller's own schema afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gateway.contract import keywords
from gateway.contract.patterns import Unreadable, read_pattern
from gateway.contract.references import References, reference_of
from gateway.types import JsonObject

_WORDS = ("title", "description", "default")
FORMATS = ("date-time", "date", "time", "uuid")
_PLAIN: JsonObject = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}]}
_ANY: JsonObject = {
    "anyOf": [
        *_PLAIN["anyOf"],
        {"type": "array", "items": _PLAIN},
        {"type": "object", "additionalProperties": _PLAIN},
    ]
}
_MOST_ROLLS = 3  # of a schema within itself
_MOST_VALUES = 2_000  # of the whole, references replaced; after them any plain value is allowed
_MOST_DEPTH = 48
_MOST_ANY = 4  # values of any kind that may hold others; each takes the server a second
_MOST_OPTIONAL = 32  # of an object that requires nothing: the expression grows with their square
_MOST_LENGTH = 32  # of one text, times the items that hold it; the server compiles 0.035 s for each
_MOST_LENGTHS = 48  # of all texts together
_MOST_ITEMS = 16
_MOST_PATTERN = 200


def inlined(root: JsonObject) -> JsonObject | None:
    """Return the schema without references; None if no finite answer keeps it.

    A schema that contains itself is unrolled as often as stays within bounds, at least once.
    """
    for rolls in range(_MOST_ROLLS, 0, -1):
        attempt = _Inliner(root, rolls)
        lowered = attempt.lower(root, 1)
        if not attempt.full or not attempt.rolled:
            break
    return lowered


class _Inliner:
    """One attempt with a number of rolls.

    Attributes:
        rolled: The schema contains itself.
        full: The schema has more values than allowed.
    """

    def __init__(self, root: JsonObject, rolls: int) -> None:
        self._references = References(root)
        self._rolls = rolls
        self._open: Counter[int] = Counter({id(root): 1})
        self.rolled = False
        self._values = 0
        self._lengths = 0
        self._anys = 0

    def lower(self, schema: object, times: int, depth: int = 0) -> JsonObject | None:
        """Return the schema in this place, which items repeat ``times`` times; None if no finite value keeps it."""
        self._values += 1
        if schema is False:
            return None
        if not isinstance(schema, dict) or depth > _MOST_DEPTH or self.full:
            return self._any()
        opened: list[int] = []
        try:
            flat = self._flat(schema, opened, 0)
            return None if flat is None else self._structure(flat, times, depth)
        finally:
            self._open.subtract(opened)

    def _flat(self, schema: JsonObject, opened: list[int], hops: int) -> JsonObject | None:
        """Merge the schema's reference and ``allOf`` into it; return None if that would never end."""
        self._values += 1
        out = {name: value for name, value in schema.items() if name not in ("$ref", "$dynamicRef", "allOf")}
        parts = keywords.schemas_of(schema, "allOf")
        if (reference := reference_of(schema)) is not None:
            target = self._references.target(reference)
            if isinstance(target, dict):
                if self._open[id(target)] > self._rolls:
                    self.rolled = True
                    return None
                self._open[id(target)] += 1
                opened.append(id(target))
            parts.append(True if target is None else target)
        for part in parts:
            if part is False:
                return None
            if isinstance(part, dict) and hops < _MOST_DEPTH and not self.full:
                inner = self._flat(part, opened, hops + 1)
                if inner is None:
                    return None
                out = keywords.merged(out, inner)
        return out

    @property
    def full(self) -> bool:
        return self._values > _MOST_VALUES

    def _any(self) -> JsonObject:
        """Return a value of any kind; after a few that may hold others, a plain one."""
        self._anys += 1
        return _ANY if self._anys <= _MOST_ANY and not self.full else _PLAIN

    def _structure(self, schema: JsonObject, times: int, depth: int) -> JsonObject | None:
        types = keywords.types_of(schema)
        if "const" in schema:
            return self._described(schema, _literals([schema["const"]]))
        if isinstance(values := schema.get("enum"), list) and values:
            kept = [value for value in values if keywords.has_type(value, types)]
            return self._described(schema, _literals(kept)) if kept else None
        branches = keywords.schemas_of(schema, "anyOf") or keywords.schemas_of(schema, "oneOf")
        if branches and "properties" not in schema:
            return self._described(schema, self._union(branches, schema, times, depth))
        if len(types) > 1:
            alternatives = [{**schema, "type": name} for name in types]
            return self._described(schema, self._union(alternatives, {}, times, depth))
        if not types:
            return self._described(schema, self._any())
        match types[0]:
            case "object":
                found = self._object(schema, times, depth)
            case "array":
                found = self._array(schema, times, depth)
            case "string":
                found = self._string(schema, times)
            case "integer" | "number":
                numbers = {name: keywords.number_of(schema, name) for name in keywords.NUMBERS}
                found = {"type": types[0], **{name: value for name, value in numbers.items() if value is not None}}
            case plain:
                found = {"type": plain}
        return self._described(schema, found)

    def _described(self, schema: JsonObject, found: JsonObject | None) -> JsonObject | None:
        """Add the caller's own words: a tool's schema is part of the prompt."""
        return None if found is None else {**found, **{name: schema[name] for name in _WORDS if name in schema}}

    def _union(self, branches: Sequence[object], siblings: JsonObject, times: int, depth: int) -> JsonObject | None:
        """Return any of the branches that a finite value can keep."""
        kept: list[JsonObject] = []
        shared: JsonObject = {name: siblings[name] for name in ("type", "required", "items") if name in siblings}
        for branch in branches:
            schema = keywords.merged(branch, shared) if isinstance(branch, dict) and shared else branch
            found = self.lower(schema, times, depth + 1)
            if found is not None:
                kept.append(found)
        if len(kept) < 2:
            return kept[0] if kept else None
        return {"anyOf": kept}

    def _object(self, schema: JsonObject, times: int, depth: int) -> JsonObject | None:
        properties = keywords.map_of(schema, "properties")
        required = keywords.required_of(schema)
        others = schema.get("additionalProperties")
        missing = {name: others if isinstance(others, dict) else True for name in required if name not in properties}
        lowered: JsonObject = {}
        for name, inner in {**properties, **missing}.items():
            found = self.lower(inner, times, depth + 1)
            if found is not None:
                lowered[name] = found
            elif name in required:
                return None
        if not properties and not missing and others is not False:
            inner = self.lower(others, times, depth + 1) if isinstance(others, dict) else _PLAIN
            return {"type": "object", "additionalProperties": inner or _PLAIN}
        if not required and len(lowered) > _MOST_OPTIONAL:
            return {"type": "object", "additionalProperties": _PLAIN}
        kept = [name for name in lowered if name in required]
        return {"type": "object", "properties": lowered, **({"required": kept} if kept else {})}

    def _array(self, schema: JsonObject, times: int, depth: int) -> JsonObject | None:
        items = schema.get("items")
        places = keywords.schemas_of(schema, "prefixItems") or keywords.schemas_of(schema, "items")
        least, most = keywords.count_of(schema, "minItems") or 0, keywords.count_of(schema, "maxItems")
        if places:
            found = [self.lower(place, times, depth + 1) for place in places]
            return None if None in found else {"type": "array", "prefixItems": found}
        if most is not None and (most > _MOST_ITEMS or most * times > _MOST_LENGTH):
            most = None
        counts = {"minItems": least if least * times <= _MOST_LENGTH else 1} if least else {}
        if most is not None:
            counts["maxItems"] = most
        repeated = times * max(1, most or counts.get("minItems", 1))
        inner = self.lower(True if items is None else items, repeated, depth + 1)
        if inner is None:
            return None if least else {"type": "array", "maxItems": 0}
        return {"type": "array", "items": inner, **counts}

    def _string(self, schema: JsonObject, times: int) -> JsonObject:
        pattern, form = schema.get("pattern"), schema.get("format")
        if isinstance(pattern, str) and (simple := _simple(pattern, times)) is not None:
            return {"type": "string", "pattern": f"^{simple}$"}
        if isinstance(form, str) and form in FORMATS:
            return {"type": "string", "format": form}
        least, most = keywords.count_of(schema, "minLength") or 0, keywords.count_of(schema, "maxLength")
        longest = max(least, most or 0) * times
        if longest <= 1:
            return {"type": "string", "minLength": least} if most is None and least else self._short(least, most)
        if longest > _MOST_LENGTH or self._lengths + longest > _MOST_LENGTHS:
            return {"type": "string", "minLength": 1} if least else {"type": "string"}
        self._lengths += longest
        return self._short(least, most)

    def _short(self, least: int, most: int | None) -> JsonObject:
        counts = {"minLength": least} if least else {}
        return {"type": "string", **counts, **({} if most is None else {"maxLength": most})}


def _simple(pattern: str, times: int) -> str | None:
    try:
        found = read_pattern(pattern)
    except Unreadable:
        return None
    return None if found.size * times > _MOST_PATTERN or not found.simple else found.simple


def _literals(values: list[object]) -> JsonObject:
    """Return exactly these values; objects and arrays as structures, for the server takes only plain constants."""
    plain = [value for value in values if not isinstance(value, (dict, list))]
    structures = [_literal(value) for value in values if isinstance(value, (dict, list))]
    alternatives = ([{"const": plain[0]} if len(plain) == 1 else {"enum": plain}] if plain else []) + structures
    return alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}


def _literal(value: object) -> JsonObject:
    if isinstance(value, dict):
        properties = {name: _literal(inner) for name, inner in value.items()}
        return {"type": "object", "properties": properties, "required": list(value)}
    if isinstance(value, list):
        places = [_literal(inner) for inner in value]
        return {"type": "array", "prefixItems": places} if places else {"type": "array", "maxItems": 0}
    return {"const": value}
