"""Lower a schema for servers that know references: the caller's own schema, without what they refuse or choke on.

Every definition that is referred to stands under ``$defs`` of the whole, by a pointer that each server understands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.contract import keywords
from gateway.contract.patterns import Pattern, Unreadable, read_pattern
from gateway.contract.references import References, reference_of
from gateway.types import JsonObject

# A schema with none of these keywords allows any value.
_STRUCTURE = ("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "properties", "items", "prefixItems")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef", "$anchor", "$dynamicAnchor")
_HEADINGS = ("$id", "id", "$schema", "$vocabulary")
_MOST_HOPS = 8  # from an allOf into one within it
_MOST_MERGES = 2_000
_DEFINITIONS = ("$defs", "definitions")
_LEFT_OUT = object()


@dataclass(frozen=True, slots=True)
class Dialect:
    """The schemas that one kind of server takes.

    Attributes:
        left_out: Keywords that it refuses.
        takes_pattern: Returns whether it can enforce a pattern, and in time.
        formats: The formats that it takes; None for all, because it ignores those it does not know.
        any_value: The schema that allows anything.
        most_count: Larger counts (items, lengths) are left out.
        most_optional: An object with more optional properties becomes any object.
        most_enum: A longer enum is left out.
    """

    left_out: frozenset[str]
    takes_pattern: Callable[[Pattern], bool]
    formats: frozenset[str] | None
    any_value: JsonObject
    most_count: int
    most_optional: int
    most_enum: int


def by_reference(root: JsonObject, dialect: Dialect) -> JsonObject:
    return _Rewriter(root, dialect).rewrite()


class _Rewriter:
    def __init__(self, root: JsonObject, dialect: Dialect) -> None:
        self._root = root
        self._dialect = dialect
        self._references = References(root)
        self._names: dict[int, str] = {}
        self._namesakes: dict[str, int] = {}  # by each name that is taken
        self._waiting: list[tuple[str, JsonObject]] = []
        self._enum_values = 0
        self._merges = 0

    def rewrite(self) -> JsonObject:
        out = self._schema(self._root)
        definitions: JsonObject = {}
        while self._waiting:
            name, target = self._waiting.pop()
            definitions[name] = self._schema(target)
        return {**out, "$defs": definitions} if definitions else out

    def _schema(self, schema: object) -> JsonObject:
        if not isinstance(schema, dict):
            return dict(self._dialect.any_value)
        flat = self._without_all_of(schema, 0)
        out: JsonObject = {}
        for keyword, value in flat.items():
            if keyword not in self._dialect.left_out and keyword not in (*_REFERENCES, *_HEADINGS, *_DEFINITIONS):
                found = self._keyword(keyword, value, flat)
                if found is not _LEFT_OUT:
                    out[keyword] = found
        self._refer(flat, out)
        self._repair(flat, out)
        if not any(keyword in out for keyword in _STRUCTURE):
            implied = keywords.types_of(out)
            out |= {"type": implied[0]} if implied else self._dialect.any_value
        return out

    def _without_all_of(self, schema: JsonObject, hops: int) -> JsonObject:
        """Merge ``allOf`` into its schema: servers know it for objects only, or not at all."""
        if "allOf" not in schema:
            return schema
        out = {keyword: value for keyword, value in schema.items() if keyword != "allOf"}
        parts = [part for part in keywords.schemas_of(schema, "allOf") if isinstance(part, dict)]
        alone = len(parts) == 1 and "properties" not in out
        for part in parts:
            self._merges += 1
            if hops > _MOST_HOPS or self._merges > _MOST_MERGES:
                break  # the server does not enforce the rest; the check of the answer does
            inner = part
            if not alone and isinstance(target := self._references.target(reference_of(part)), dict):
                inner = keywords.merged({name: value for name, value in part.items() if name != "$ref"}, target)
            out = keywords.merged(out, self._without_all_of(inner, hops + 1))
        return out

    def _keyword(self, keyword: str, value: object, schema: JsonObject) -> object:
        """Return one keyword's value in the dialect; ``_LEFT_OUT`` if it has none."""
        match keyword:
            case "properties" | "patternProperties" | "dependentSchemas":
                inner = keywords.map_of(schema, keyword)
                return {name: self._schema(each) for name, each in inner.items() if each is not False}
            case "anyOf" | "oneOf":
                return [
                    self._schema(each) for each in keywords.schemas_of(schema, keyword) if each is not False
                ] or _LEFT_OUT
            case "prefixItems":
                return [self._schema(each) for each in keywords.schemas_of(schema, keyword)] or _LEFT_OUT
            case "items" | "additionalProperties" | "contains" | "propertyNames" | "not" | "if" | "then" | "else":
                if isinstance(value, bool):
                    return value if keyword == "additionalProperties" or not value else {}
                return self._schema(value) if isinstance(value, dict) else _LEFT_OUT
            case "required":
                return keywords.required_of(schema)
            case "type":
                known = keywords.types_of({"type": value})
                return _LEFT_OUT if not known else known if isinstance(value, list) else known[0]
            case "enum":
                return self._enum(value)
            case "pattern":
                return value if self._takes(value) else _LEFT_OUT
            case "format":
                formats = self._dialect.formats
                return value if isinstance(value, str) and (formats is None or value in formats) else _LEFT_OUT
        if keyword in keywords.NUMBERS:
            number = keywords.number_of(schema, keyword)
            return _LEFT_OUT if number is None else number
        if keyword in keywords.COUNTS:
            count = keywords.count_of(schema, keyword)
            return _LEFT_OUT if count is None or count > self._dialect.most_count else count
        return value

    def _enum(self, value: object) -> object:
        if not isinstance(value, list) or not value:
            return _LEFT_OUT
        self._enum_values += len(value)
        return value if self._enum_values <= self._dialect.most_enum else _LEFT_OUT

    def _takes(self, pattern: object) -> bool:
        try:
            return isinstance(pattern, str) and self._dialect.takes_pattern(read_pattern(pattern))
        except Unreadable:
            return False

    def _refer(self, schema: JsonObject, out: JsonObject) -> None:
        """Write the schema's reference as a pointer into ``$defs``; one that points nowhere allows anything."""
        target = self._references.target(reference_of(schema))
        if not isinstance(target, dict):
            return
        name = self._names.get(id(target))
        if name is None:
            name = self._names[id(target)] = self._name(schema)
            self._waiting.append((name, target))
        out["$ref"] = f"#/$defs/{name}"

    def _name(self, schema: JsonObject) -> str:
        """Return a name for a definition: its own if that needs no escape and is free."""
        own = str(reference_of(schema)).rpartition("/")[2]
        plain = name = own if own.isascii() and own.replace("_", "").replace("-", "").isalnum() else "Schema"
        while name in self._namesakes:
            self._namesakes[plain] += 1
            name = f"{plain}_{self._namesakes[plain]}"
        self._namesakes[name] = 0
        return name

    def _repair(self, schema: JsonObject, out: JsonObject) -> None:
        """Rewrite keywords of older drafts, and combinations that servers refuse."""
        if isinstance(schema.get("items"), list):
            out.pop("items", None)
            out["prefixItems"] = [self._schema(each) for each in keywords.schemas_of(schema, "items")]
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if schema.get(exclusive) is True and bound in out:
                out[exclusive] = out.pop(bound)
        if "enum" not in out and "type" not in out and isinstance(values := schema.get("enum"), list) and values:
            types = sorted({keywords.type_of(value) for value in values})
            out["type"] = types[0] if len(types) == 1 else types
        if "pattern" in out:
            out.pop("minLength", None)
            out.pop("maxLength", None)
        if ("minItems" in out or "maxItems" in out) and "items" not in out and "prefixItems" not in out:
            out["items"] = dict(self._dialect.any_value)
        for least, most in (("minItems", "maxItems"), ("minLength", "maxLength"), ("minProperties", "maxProperties")):
            if least in out and most in out and out[least] > out[most]:
                out.pop(least), out.pop(most)
        optional = set(out.get("properties", ())) - set(out.get("required", ()))
        if len(optional) > self._dialect.most_optional:
            for keyword in ("properties", "required", "additionalProperties"):
                out.pop(keyword, None)
            out["type"] = "object"
