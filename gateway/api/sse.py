"""Server-sent events: a race's winners or a live stream, in OpenAI's chunks.

Frames are ``data: <json>`` and a blank line; comments (``:``) keep a silent connection alive; ``[DONE]`` ends a stream.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import orjson

from gateway.api import errors, render
from gateway.errors import GatewayError
from gateway.types import Answer, Delta, JsonObject, Outcome, Selection

KEEP_ALIVE = b": the race is on\n\n"
DONE = b"data: [DONE]\n\n"

# About what a tokenizer would cut: a run of white space with at most this many characters after it.
_PIECE = re.compile(r"\s*\S{1,6}|\s+", re.DOTALL)


def frame(body: object) -> bytes:
    """Return one event."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def error_event(error: GatewayError) -> bytes:
    """Return an error as the end of a stream."""
    _, body, _ = errors.describe(error)
    return frame(body) + DONE


class Chunks:
    """Renders the chunks of one streamed completion.

    Args:
        completion_id: The completion's id, on every chunk.
        created: Unix time in seconds, on every chunk.
        model: The model as the caller asked for it, on every chunk.
        include_usage: Whether the caller wants a last chunk with the usage.

    Attributes:
        headers: Headers of the response, complete once ``events`` has yielded its first event.
    """

    def __init__(self, *, completion_id: str, created: int, model: str, include_usage: bool) -> None:
        self.headers: dict[str, str] = {}
        self._head: JsonObject = {
            "id": completion_id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._include_usage = include_usage

    async def events(self, pieces: AsyncGenerator[Delta | Outcome]) -> AsyncGenerator[bytes]:
        """Yield a streamed answer's events: each delta as it comes, or the winners in one burst; then the end."""
        opened = False
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, Delta):
                    event = self.piece(piece) if piece.text or piece.tool_calls or piece.logprobs else b""
                    if not opened:
                        opened = True
                        self.headers = {"x-bon-n": "1", "x-bon-selection": Selection.SINGLE.value}
                        event = self.first() + event
                    if event:
                        yield event
                else:
                    if not opened:
                        self.headers = render.headers(piece)
                        yield b"".join(self.winners(piece))
                    yield b"".join(self.end(piece))

    def winners(self, outcome: Outcome) -> Iterator[bytes]:
        """Yield every returned answer in token-sized chunks, without its end."""
        for rank, answer in enumerate(render.answers(outcome)):
            yield self.first(rank)
            for delta in _pieces(answer):
                yield self.piece(delta, rank)

    def first(self, rank: int = 0) -> bytes:
        """Return the chunk that opens an answer."""
        return self._chunk(rank, {"role": "assistant", "content": "", "refusal": None})

    def piece(self, delta: Delta, rank: int = 0) -> bytes:
        """Return one piece of an answer."""
        content: JsonObject = {"content": delta.text} if delta.text or not delta.tool_calls else {}
        if delta.tool_calls:
            content["tool_calls"] = delta.tool_calls
        return self._chunk(rank, content, logprobs=delta.logprobs)

    def end(self, outcome: Outcome) -> Iterator[bytes]:
        """Yield the finish reasons, with the race's report on the last; the usage, if asked for; ``[DONE]``."""
        answers = render.answers(outcome)
        for rank, answer in enumerate(answers):
            last = rank == len(answers) - 1
            report = {"best_of_n": render.report(outcome)} if last else {}
            yield self._chunk(rank, {}, finish_reason=answer.finish_reason, **report)
        if self._include_usage:
            yield frame({**self._head, "choices": [], "usage": render.usage(outcome)})
        yield DONE

    def _chunk(
        self,
        rank: int,
        delta: JsonObject,
        *,
        logprobs: JsonObject | None = None,
        finish_reason: str | None = None,
        **extra: JsonObject,
    ) -> bytes:
        choice = {"index": rank, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self._include_usage else {}
        return frame({**self._head, "choices": [choice], **usage, **extra})


def _pieces(answer: Answer) -> Iterator[Delta]:
    """Cut an answer into deltas: by its tokens where the logprobs spell its text, else by ``_PIECE``."""
    tokens = (answer.logprobs or {}).get("content") or []
    if tokens and "".join(token.get("token", "") for token in tokens) == answer.text:
        for token in tokens:
            yield Delta(text=token["token"], logprobs={"content": [token]})
    else:
        for index, piece in enumerate(_PIECE.findall(answer.text or "")):
            yield Delta(text=piece, logprobs=answer.logprobs if index == 0 else None)
    for index, call in enumerate(answer.tool_calls):
        function = call["function"]
        opening = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        yield Delta(tool_calls=(opening,))
        for piece in _PIECE.findall(function["arguments"]):
            yield Delta(tool_calls=({"index": index, "function": {"arguments": piece}},))
