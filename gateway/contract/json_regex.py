"""JSON as a regular expression, for a server that has no other grammar of free JSON."""

from __future__ import annotations

# A string may hold any character that JSON does not escape, and the short escapes.
_STRING = r'"([^"\\\x00-\x1F\x7F-\x9F]|\\["\\/bfnrt])*"'
_NUMBER = r"(-)?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?"
_PLAIN = f"({_STRING}|{_NUMBER}|true|false|null)"
_GAP = "[ ]?"


def _object(value: str) -> str:
    pair = f"{_STRING}{_GAP}:{_GAP}{value}"
    return rf"\{{{_GAP}({pair}({_GAP},{_GAP}{pair})*)?{_GAP}\}}"


def _array(value: str) -> str:
    return rf"\[{_GAP}({value}({_GAP},{_GAP}{value})*)?{_GAP}\]"


_NESTED = f"({_PLAIN}|{_object(_PLAIN)}|{_array(_PLAIN)})"

ANY_OBJECT = _object(_NESTED)
"""An object two levels deep: deeper, the server would compile for minutes."""
ANY_ARRAY = _array(_NESTED)
"""An array, as deep."""
ANY_VALUE = f"({_PLAIN}|{ANY_OBJECT}|{ANY_ARRAY})"
"""Any JSON value, as deep."""
