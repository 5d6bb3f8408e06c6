"""References within a schema: ``#/$defs/Name``, ``#``, an ``$anchor`` or an ``$id`` of the same document."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote

from gateway.types import JsonObject

# Where JSON Schema keeps schemas within a schema.
MAPS = ("properties", "patternProperties", "dependentSchemas")
DEFINITIONS = ("$defs", "definitions")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLES = (
    "items",
    "additionalItems",
    "contains",
    "additionalProperties",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
)


class References:
    """Finds what a schema's references point to. Nothing outside the document is ever looked up.

    Args:
        root: The whole schema.
    """

    def __init__(self, root: JsonObject) -> None:
        self._root = root
        self._named: dict[str, JsonObject] | None = None

    def target(self, reference: object) -> JsonObject | bool | None:
        """The schema that a reference points to; None where there is none in this document."""
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
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
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
    """The reference of a schema, whichever keyword it stands under; None where it has none."""
    return schema.get("$ref", schema.get("$dynamicRef", schema.get("$recursiveRef")))


def subschemas(schema: JsonObject, *, definitions: bool = False) -> Iterator[object]:
    """The schemas that stand directly in a schema, whatever they are; those that are only defined there on demand."""
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
