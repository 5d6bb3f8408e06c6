"""Read a server's tool calls into OpenAI's shape: one entry a call, counted from 0, each with an id of its own.

Servers disagree about what distinguishes the pieces of two streamed calls: some count from 1 or from -1, some give
every call index 0, some leave out index or id, TGI gives every call the id "0". So a piece is matched by id first, by
index second, by order last, and a server's indexes and ids are never passed on unchecked.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.errors import BackendProtocolError
from gateway.types import JsonObject, Message

MAX_CALLS = 128  # in one answer: as many as a request may offer tools

# Clients pair a result with its call by id alone, over a whole conversation. An id that is a word and a counter would
# come again with the next answer. Kimi's own scheme ("functions.NAME:3") counts over the conversation, and its template
# reads it: it is kept.
_COUNTED_ID = re.compile(r"\D*\d{0,3}")
_CONVERSATION_WIDE = "functions."
_ID_CHARS = range(9, 257)

_MALFORMED = "the backend's answer has tool calls that make no sense"
_NAMELESS = "the backend's answer calls a tool without a name"


@dataclass(slots=True)
class _Call:
    """A streamed call so far; ``position`` is its index in our answer, None until its name is known."""

    given_index: object
    given_id: str | None
    name: str | None = None
    position: int | None = None
    arguments: list[str] = field(default_factory=list)

    def arguments_so_far(self) -> str:
        return "".join(self.arguments)


class ToolCalls:
    """The tool calls of one answer, whole or streamed.

    Args:
        messages: The conversation: a call's id must not be in it already.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self._used_ids: set[str] | None = None
        self._calls: list[_Call] = []
        self._opened = 0

    @property
    def opened(self) -> bool:
        """True once the stream named a call."""
        return self._opened > 0

    def read_whole(self, message: JsonObject) -> tuple[JsonObject, ...]:
        """Read the calls of a whole message; raise ``BackendProtocolError`` if they are malformed or too many."""
        calls = _call_list(message)
        if len(calls) > MAX_CALLS:
            raise BackendProtocolError(f"the backend's answer has more than {MAX_CALLS} tool calls")
        return tuple(self._whole(call) for call in calls)

    def read_pieces(self, delta: JsonObject) -> Iterator[JsonObject]:
        """Yield the pieces in a stream's delta as OpenAI streams them; raises as ``read_whole``."""
        for piece in _call_list(delta):
            function = piece.get("function")
            if function is None:
                function = {}
            if not isinstance(function, dict):
                raise BackendProtocolError(_MALFORMED)
            read = self._read_piece(piece, _name(function), _arguments(function))
            if read is not None:
                yield read

    def check_ended(self) -> None:
        """Raise ``BackendProtocolError`` if the stream gave arguments to a call that it never named."""
        if any(call.name is None and call.arguments_so_far() for call in self._calls):
            raise BackendProtocolError(_NAMELESS)

    def _whole(self, call: JsonObject) -> JsonObject:
        function = call.get("function")
        if not isinstance(function, dict):
            raise BackendProtocolError(_MALFORMED)
        name = _name(function)
        if name is None:
            raise BackendProtocolError(_NAMELESS)
        named = {"name": name, "arguments": _arguments(function)}
        return {"id": self._own_id(call.get("id")), "type": "function", "function": named}

    def _read_piece(self, piece: JsonObject, name: str | None, arguments: str) -> JsonObject | None:
        """Add one piece to its call; return None if there is nothing to send yet."""
        index, given_id = _index(piece), _given_id(piece)
        call = self._match(index, given_id)
        if call is None or (name is not None and _begins_another(call, index, given_id, name, arguments)):
            call = self._begin(index, given_id)
        elif name is not None and arguments and arguments == call.arguments_so_far():
            return None  # the whole call once more
        if call.arguments == ["{"] and arguments.startswith(","):
            # TGI sends "{" for the name it has just read, and then the comma that followed the name.
            arguments = arguments[1:]
        if arguments:
            call.arguments.append(arguments)
        call.name = call.name or name
        if call.position is None:
            return None if call.name is None else self._open(call)
        return {"index": call.position, "function": {"arguments": arguments}} if arguments else None

    def _match(self, index: object, given_id: str | None) -> _Call | None:
        """Return the call that a piece belongs to by id and index, else the last one; None for a new call."""
        best, best_rank = None, 0
        for call in reversed(self._calls):
            by_id = given_id is not None and call.given_id == given_id
            by_index = index is not None and call.given_index == index
            rank = 2 * by_id + by_index
            if rank > best_rank:
                best, best_rank = call, rank
        if best is None and self._calls and (index is None or given_id is None):
            return self._calls[-1]
        return best

    def _begin(self, index: object, given_id: str | None) -> _Call:
        if len(self._calls) >= MAX_CALLS:
            raise BackendProtocolError(f"the backend's answer has more than {MAX_CALLS} tool calls")
        call = _Call(index, given_id)
        self._calls.append(call)
        return call

    def _open(self, call: _Call) -> JsonObject:
        """Return the piece that names a call, with the arguments that came before the name."""
        call.position = self._opened
        self._opened += 1
        return {
            "index": call.position,
            "id": self._own_id(call.given_id),
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments_so_far()},
        }

    def _own_id(self, given: object) -> str:
        """Return the server's id if it is unique in the conversation, else a new one.

        New ones have nine alphanumeric characters: some templates (Mistral's) refuse any other.
        """
        if self._used_ids is None:
            self._used_ids = {
                str(call.get("id")) for message in self._messages for call in message.get("tool_calls", ())
            }
        own = given if isinstance(given, str) and self._is_unique(given, self._used_ids) else uuid.uuid4().hex[:9]
        self._used_ids.add(own)
        return own

    @staticmethod
    def _is_unique(given: str, used: set[str]) -> bool:
        counted = _COUNTED_ID.fullmatch(given) and not given.startswith(_CONVERSATION_WIDE)
        return len(given) in _ID_CHARS and given not in used and not counted


def _begins_another(call: _Call, index: object, given_id: str | None, name: str, arguments: str) -> bool:
    """Return whether a named piece begins another call than the one it was matched with."""
    if None not in (given_id, call.given_id) and given_id != call.given_id:
        return True
    if None not in (index, call.given_index) and index != call.given_index:
        return True
    if call.name is None or call.name != name:
        return call.name is not None
    # Only the arguments distinguish them: after a complete object no more can follow.
    so_far = call.arguments_so_far()
    return bool(arguments) and arguments != so_far and so_far.endswith("}") and is_json(so_far)


def is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _call_list(message: JsonObject) -> list[JsonObject]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BackendProtocolError(_MALFORMED)
    return calls


def _index(piece: JsonObject) -> object:
    """Return the server's index, for comparison only."""
    index = piece.get("index")
    return index if isinstance(index, int | float | str) else None


def _given_id(piece: JsonObject) -> str | None:
    given = piece.get("id")
    return given if isinstance(given, str) and given else None


def _name(function: JsonObject) -> str | None:
    name = function.get("name")
    if not isinstance(name, str | None):
        raise BackendProtocolError(_NAMELESS)
    return name or None


def _arguments(function: JsonObject) -> str:
    """Return arguments as OpenAI has them, JSON in a string; older TGI sends the object itself."""
    arguments: Any = function.get("arguments")
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    try:
        return orjson.dumps(arguments).decode()
    except TypeError as error:  # nested deeper than may be written
        raise BackendProtocolError("the backend's answer calls a tool with arguments that make no sense") from error
