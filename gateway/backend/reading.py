"""Reads a backend's answers, whole or in pieces, into OpenAI's terms; what makes no sense is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from gateway.backend.failures import raise_if_error
from gateway.backend.flavours import Flavour
from gateway.backend.stopping import StopTrimmer
from gateway.errors import BackendProtocolError
from gateway.types import Answer, Delta, FinishReason, JsonObject, Sampling

_MOST_TOKENS = 10_000_000
"""No prompt and no answer is longer: a count beyond it would take a key's budget for ever."""


def read_answer(body: Any, flavour: Flavour, sampling: Sampling) -> Answer:
    """Understand a whole chat completion.

    Token counts are required: an answer of unknown length would falsify usage, rate limits and the night's guards.

    Raises:
        BackendError: The body is an error, or not a chat completion.
    """
    raise_if_error(body, flavour)
    choice = _choice(body)
    message = _object(choice, "message")
    calls = _whole_calls(message)
    trimmer = _trimmer(flavour, sampling)
    text, entries = trimmer.feed(_text(message), _logprob_entries(choice, sampling))
    rest, more_entries = trimmer.finish()
    usage = _object(body, "usage")
    return Answer(
        text=None if calls and not text + rest else text + rest,
        finish_reason=_finish_reason(choice.get("finish_reason"), flavour, called=bool(calls), stopped=trimmer.stopped),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        tool_calls=calls,
        logprobs=_logprobs(entries + more_entries) if sampling.logprobs else None,
    )


class StreamReader:
    """Understands one streamed draw, chunk by chunk; ``last`` gives the closing piece."""

    def __init__(self, flavour: Flavour, sampling: Sampling) -> None:
        self._flavour = flavour
        self._sampling = sampling
        self._trimmer = _trimmer(flavour, sampling)
        self._finish_reason: str | None = None
        self._opening: dict[int, str] = {}  # first characters of each call's arguments
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._pieces = 0
        self.overrun = False
        """Whether the server goes on after a stop string that it did not see (one within a token)."""

    def read(self, chunk: Any) -> Iterator[Delta]:
        """Take one chunk and give what may be shown of it.

        Raises:
            BackendError: The chunk is an error, or not a chunk.
        """
        raise_if_error(chunk, self._flavour)
        usage = chunk.get("usage") if isinstance(chunk, dict) else None
        if usage:
            self._prompt_tokens = _count(usage, "prompt_tokens")
            self._completion_tokens = _count(usage, "completion_tokens")
        if isinstance(chunk, dict) and chunk.get("choices") == []:
            return
        choice = _choice(chunk)
        message = _object(choice, "delta")
        self.overrun = self._trimmer.stopped and self._finish_reason is None
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._pieces += 1
        text, entries = self._trimmer.feed(_text(message), _logprob_entries(choice, self._sampling))
        calls = tuple(self._call_pieces(message))
        if text or calls or entries:
            yield Delta(text, calls, _logprobs(entries) if entries else None)

    def last(self) -> Delta:
        """The piece that ends the draw, with what was held back, the finish reason and the token counts.

        Raises:
            BackendProtocolError: The stream ended before the answer did.
        """
        # TGI ends a streamed tool call without a finish reason; that the usage came says it is whole.
        whole_call = bool(self._opening) and self._completion_tokens is not None
        if self._finish_reason is None and not self._trimmer.stopped and not whole_call:
            raise BackendProtocolError("the backend's stream ended before its answer did")
        text, entries = self._trimmer.finish()
        reason = _finish_reason(
            self._finish_reason or "stop", self._flavour, called=bool(self._opening), stopped=self._trimmer.stopped
        )
        if self.overrun:
            # Hung up before the usage came: such servers send a token a chunk.
            self._completion_tokens = self._pieces
        logprobs = _logprobs(entries) if entries else None
        return Delta(text, (), logprobs, reason, self._prompt_tokens, self._completion_tokens)

    def _call_pieces(self, message: JsonObject) -> Iterator[JsonObject]:
        """Pieces of tool calls as OpenAI streams them; TGI repeats id and type, and may open with ``{,``."""
        for position, call in enumerate(_call_list(message)):
            index = call["index"] if isinstance(call.get("index"), int) else position
            function = _object(call, "function")
            arguments = _arguments(function)
            piece: JsonObject = {"index": index, "function": {"arguments": arguments}}
            if index not in self._opening:
                piece |= {"id": _call_id(call, index), "type": "function"}
                piece["function"]["name"] = _name(function)
            elif self._opening[index] == "{" and arguments.startswith(","):
                # TGI says "{" for the name it has just read, and then the comma that followed the name.
                piece["function"]["arguments"] = arguments = arguments[1:]
            self._opening[index] = (self._opening.get(index, "") + arguments)[:2]
            yield piece


def _trimmer(flavour: Flavour, sampling: Sampling) -> StopTrimmer:
    return StopTrimmer(sampling.stop if flavour.keeps_stop_text else ())


def _choice(body: Any) -> JsonObject:
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BackendProtocolError("the backend's answer has no choices")
    return choices[0]


def _object(parent: JsonObject, key: str) -> JsonObject:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise BackendProtocolError(f"the backend's answer has no {key}")
    return value


def _count(usage: JsonObject, key: str) -> int:
    value = usage.get(key) if isinstance(usage, dict) else None
    if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
        raise BackendProtocolError(f"the backend's answer has no {key}")
    return value


def _text(message: JsonObject) -> str:
    text = message.get("content")
    if not isinstance(text, str | None):
        raise BackendProtocolError("the backend's answer has a content that is not text")
    return text or ""


def _finish_reason(reason: object, flavour: Flavour, *, called: bool, stopped: bool) -> FinishReason:
    if stopped:
        return "stop"
    known = flavour.finish_reasons.get(reason) if isinstance(reason, str) else None
    if known is None:
        raise BackendProtocolError("the backend's answer has no known finish reason")
    if called and known == "stop":
        return "tool_calls"
    return known


def _call_list(message: JsonObject) -> list[JsonObject]:
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BackendProtocolError("the backend's answer has tool calls that make no sense")
    return calls


def _whole_calls(message: JsonObject) -> tuple[JsonObject, ...]:
    calls = []
    for index, call in enumerate(_call_list(message)):
        function = _object(call, "function")
        named = {"name": _name(function), "arguments": _arguments(function)}
        calls.append({"id": _call_id(call, index), "type": "function", "function": named})
    return tuple(calls)


def _call_id(call: JsonObject, index: int) -> str:
    return call["id"] if isinstance(call.get("id"), str) and call["id"] else f"call_{index}"


def _name(function: JsonObject) -> str:
    name = function.get("name")
    if not isinstance(name, str):
        raise BackendProtocolError("the backend's answer calls a tool without a name")
    return name


def _arguments(function: JsonObject) -> str:
    """Arguments as OpenAI has them, JSON in a string; older TGI sends the object itself."""
    arguments = function.get("arguments")
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return arguments
    try:
        return orjson.dumps(arguments).decode()
    except TypeError as error:  # nested deeper than may be written
        raise BackendProtocolError("the backend's answer calls a tool with arguments that make no sense") from error


def _logprob_entries(choice: JsonObject, sampling: Sampling) -> list[JsonObject]:
    """One entry a token, with as many alternatives as were asked for."""
    logprobs = choice.get("logprobs")
    if not sampling.logprobs or logprobs is None:
        return []
    try:
        return [_logprob_entry(entry, sampling.top_logprobs or 0) for entry in logprobs["content"] or ()]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise BackendProtocolError("the backend's answer has logprobs that make no sense") from error


def _logprob_entry(entry: JsonObject, alternatives: int) -> JsonObject:
    best = (entry.get("top_logprobs") or [])[:alternatives]
    return {**_token(entry), "top_logprobs": [_token(alternative) for alternative in best]}


def _token(entry: JsonObject) -> JsonObject:
    token, logprob, given = entry["token"], entry["logprob"], entry.get("bytes")
    # No logprob is minus infinity, as TGI writes it.
    if not isinstance(logprob, float | int | None) or not isinstance(given, list | None):
        raise TypeError
    # A token may be a part of a character: then only the server knows its bytes.
    return {"token": token, "logprob": logprob, "bytes": list(bytes(given) if given else token.encode())}


def _logprobs(entries: list[JsonObject]) -> JsonObject:
    return {"content": entries, "refusal": None}
