"""References within a schema: ``#/$defs/Name``, ``#``, an ``$anchor`` or an ``$id`` of the same document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from gateway.types import JsonObject

# Keywords that hold schemas.
MAPS = ("properties", "patternProperties", "dependentSchemas")
DEFINITIONS = ("$defs", "definitions")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_CONDITIONS = ("not", "if", "then", "else")
_ITEMS = ("items", "additionalItems", "contains", "unevaluatedItems")
_PROPERTIES = ("additionalProperties", "propertyNames", "unevaluatedProperties")
SINGLES = (*_ITEMS, *_PROPERTIES, *_CONDITIONS, "contentSchema")
_INDEX = re.compile(r"[0-9]{1,9}")  # int() refuses more than 4,300 digits


class References:
    """Finds the targets of a schema's references, in this document only."""

    def __init__(self, root: JsonObject) -> None:
        self._root = root
        self._named: dict[str, JsonObject] | None = None

    def target(self, reference: object) -> JsonObject | bool | None:
        """Return the schema that a reference points to; None if it points to none in this document."""
        if not isinstance(reference, str):
            return None
        if reference in ("#", "#/", ""):
            return self._root
        if reference.startswith("#/"):
            return self._at(reference[2:])
        return self._by_name().get(reference)

    def _at(self, pointer: str) -> JsonObject | bool | None:
        found: object = self._root
        for step in pointer.split("/"):
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(name)
            elif isinstance(found, list) and _INDEX.fullmatch(name) and int(name) < len(found):
                found = found[int(name)]
            else:
                return None
        return found if isinstance(found, (dict, bool)) else None

    def _by_name(self) -> dict[str, JsonObject]:
        if self._named is None:
            self._named = {}
            waiting = [self._root]
            while waiting:
                schema = waiting.pop()
                for keyword, sign in (("$anchor", "#"), ("$dynamicAnchor", "#"), ("$id", ""), ("id", "")):
                    if isinstance(name := schema.get(keyword), str):
                        self._named.setdefault(sign + name, schema)
                waiting += [inner for inner in subschemas(schema, definitions=True) if isinstance(inner, dict)]
        return self._named


def reference_of(schema: JsonObject) -> object:
    """Return the reference of a schema, under any of its keywords; None if it has none."""
    return schema.get("$ref", schema.get("$dynamicRef", schema.get("$recursiveRef")))


def subschemas(schema: JsonObject, *, definitions: bool = False) -> Iterator[object]:
    """Yield the schemas directly in a schema; with ``definitions`` also those that are only defined there."""
    for keyword in (*MAPS, *DEFINITIONS) if definitions else MAPS:
        if isinstance(inner := schema.get(keyword), dict):
            yield from inner.values()
    for keyword in LISTS:
        if isinstance(inner := schema.get(keyword), list):
            yield from inner
    for keyword in SINGLES:
        inner = schema.get(keyword)
        if isinstance(inner, list):  # items, before prefixItems took its place
            yield from inner
        elif inner is not None:
            yield inner


def circular(root: JsonObject, references: References) -> bool:
    """Return whether a part of the schema contains itself for the same value, so that checking it would never end.

    A part that contains itself for a value within its value, as a tree does, is not circular.
    """
    waiting: list[JsonObject] = [root]
    known: dict[int, JsonObject] = {}
    while waiting:
        schema = waiting.pop()
        if id(schema) not in known:
            known[id(schema)] = schema
            reached = (*subschemas(schema, definitions=True), references.target(reference_of(schema)))
            waiting += [inner for inner in reached if isinstance(inner, dict)]
    done: set[int] = set()
    for start in known.values():
        path: list[tuple[int, Iterator[JsonObject]]] = [(id(start), _in_place(start, references))]
        open_ids = {id(start)}
        while path:
            identity, rest = path[-1]
            inner = next((schema for schema in rest if id(schema) not in done), None)
            if inner is None:
                done.add(identity)
                open_ids.discard(identity)
                path.pop()
            elif id(inner) in open_ids:
                return True
            else:
                open_ids.add(id(inner))
                path.append((id(inner), _in_place(inner, references)))
    return False


def _in_place(schema: JsonObject, references: References) -> Iterator[JsonObject]:
    """Yield the schemas that the same value must keep, or may."""
    dependent = schema.get("dependentSchemas")
    inner: list[object] = [references.target(reference_of(schema))]
    inner += [schema.get(keyword) for keyword in _CONDITIONS]
    inner += [
        part
        for keyword in ("allOf", "anyOf", "oneOf")
        if isinstance(found := schema.get(keyword), list)
        for part in found
    ]
    inner += dependent.values() if isinstance(dependent, dict) else ()
    return (part for part in inner if isinstance(part, dict))
