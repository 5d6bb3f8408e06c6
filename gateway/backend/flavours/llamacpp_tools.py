"""A forced tool call on llama.cpp: requested as JSON, and read back as the call that it is.

llama.cpp reads ``tool_choice: required`` as permission to talk before the call, as long as the model likes, and a named
tool as ``auto``. A JSON schema does bind it. So the tools go into the prompt with ``tool_choice: none``, and the answer
must be an object with the name of one of them and its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from gateway.backend.tool_calls import is_json
from gateway.types import JsonObject, Sampling

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\S)', re.DOTALL)
_LAST_BRACE = re.compile(r"\}\s*\Z")


def forced_tools(sampling: Sampling) -> tuple[JsonObject, ...]:
    """Return the tools of which one must be called; none if the model may choose to call none."""
    choice = sampling.tool_choice
    if choice == "required":
        return sampling.tools
    if not isinstance(choice, dict):
        return ()
    return tuple(tool for tool in sampling.tools if tool["function"]["name"] == choice["function"]["name"])


def call_schema(tools: Sequence[JsonObject], parameters: Callable[[JsonObject], JsonObject]) -> JsonObject:
    """Return the JSON schema of a call of one of these tools; ``parameters`` lowers a tool's parameters."""
    definitions, calls = {}, []
    for index, tool in enumerate(tools):
        name = f"tool_{index}"
        definitions[name] = _moved(parameters(tool["function"]["parameters"]), f"#/$defs/{name}")
        arguments = {"$ref": f"#/$defs/{name}"}
        properties = {"name": {"const": tool["function"]["name"]}, "arguments": arguments}
        call = {"type": "object", "properties": properties, "required": ["name", "arguments"]}
        calls.append({**call, "additionalProperties": False})
    return {"anyOf": calls, "$defs": definitions}


class ForcedCall:
    """Turns the choices of one answer, whole or streamed, from the JSON of a call into a tool call."""

    def __init__(self) -> None:
        self._head: str | None = ""
        self._held = ""
        self._arguments = ""

    def whole(self, choice: JsonObject) -> JsonObject:
        message = choice["message"]
        pieces = [*self._feed(message.get("content") or ""), *self._finish()]
        called: JsonObject = {"role": "assistant", "content": None}
        if pieces:
            arguments = "".join(piece["function"]["arguments"] for piece in pieces)
            called["tool_calls"] = [{"function": {"name": pieces[0]["function"]["name"], "arguments": arguments}}]
        return {**choice, "message": called, "logprobs": None}

    def streamed(self, choice: JsonObject) -> JsonObject:
        delta = choice.get("delta") or {}
        pieces = self._feed(delta.get("content") or "")
        if choice.get("finish_reason"):
            pieces += self._finish()
        return {**choice, "delta": {"tool_calls": pieces}, "logprobs": None}

    def _feed(self, text: str) -> list[JsonObject]:
        if self._head is None:
            return self._give(text)
        self._head += text
        begun = _HEAD.match(self._head)
        if begun is None:
            return []
        rest, self._head = self._head[begun.end() :], None
        opening = {"index": 0, "function": {"name": orjson.loads(begun[1]), "arguments": ""}}
        return [opening, *self._give(rest)]

    def _give(self, text: str) -> list[JsonObject]:
        """Pass on arguments, except the last brace so far: it may be the one that closes the call around them."""
        pending = self._held + text
        last = _LAST_BRACE.search(pending)
        end = len(pending) if last is None else last.start()
        self._held = pending[end:]
        return self._piece(pending[:end])

    def _finish(self) -> list[JsonObject]:
        """Pass on the last brace if the arguments are incomplete without it: the answer was cut."""
        if self._head is not None or is_json(self._arguments):
            return []
        return self._piece(self._held)

    def _piece(self, arguments: str) -> list[JsonObject]:
        self._arguments += arguments
        return [{"index": 0, "function": {"arguments": arguments}}] if arguments else []


def _moved(schema: Any, to: str) -> Any:
    """Return the schema with its references to itself pointing to its new place."""
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, to) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = to + reference[1:]
    return moved
