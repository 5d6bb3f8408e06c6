"""Put a streamed answer together again: its caller saw it piece by piece, its record holds it whole."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.errors import BackendProtocolError
from gateway.types import Answer, Delta, JsonObject


@dataclass(slots=True)
class Transcript:
    """The pieces of an answer so far."""

    text: list[str] = field(default_factory=list)
    tool_calls: list[JsonObject] = field(default_factory=list)
    logprobs: list[JsonObject] = field(default_factory=list)
    last: Delta | None = None

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        for call in delta.tool_calls:
            _merge_tool_call(self.tool_calls, call)
        if delta.logprobs:
            self.logprobs.extend(delta.logprobs.get("content") or [])
        if delta.finish_reason is not None:
            self.last = delta

    def answer(self) -> Answer:
        """Return the whole answer.

        Raises:
            BackendProtocolError: The stream ended before its last piece.
        """
        if self.last is None or self.last.finish_reason is None:
            raise BackendProtocolError("the backend's stream ended without a finish reason")
        return Answer(
            text="".join(self.text) or (None if self.tool_calls or self.last.reasoned else ""),
            finish_reason=self.last.finish_reason,
            prompt_tokens=self.last.prompt_tokens or 0,
            completion_tokens=self.last.completion_tokens or 0,
            tool_calls=tuple(self.tool_calls),
            logprobs={"content": self.logprobs} if self.logprobs else None,
            reasoned=self.last.reasoned,
        )


def _merge_tool_call(calls: list[JsonObject], piece: JsonObject) -> None:
    """Add one streamed piece of a tool call. Backends number the calls from 0 in the order in which they begin."""
    index, function = piece["index"], piece["function"]
    if index == len(calls):
        opened = {"name": function["name"], "arguments": function["arguments"]}
        calls.append({"id": piece["id"], "type": "function", "function": opened})
    else:
        calls[index]["function"]["arguments"] += function["arguments"]
