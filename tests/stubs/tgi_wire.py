"""TGI's answers as bytes: whole responses, and the events of streams."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Sequence
from typing import Any

import orjson

from tests.stubs.tgi_errors import TgiError
from tests.stubs.tgi_generation import EOS_PIECE, Generated, logprob, split
from tests.stubs.tgi_validation import GenerationRequest

VERSION = "3.3.7"
FINGERPRINT = f"{VERSION}-native"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b":\n\n"

Event = tuple[int, bytes]
"""The index of the token that an event waits for, and the event."""


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def chat_response(request: GenerationRequest, generated: Generated, arguments: str | None) -> bytes:
    """The body of a plain chat completion.

    Raises:
        TgiError: A tool call was cut short, so TGI cannot parse it.
    """
    message: dict[str, Any]
    told = generated
    if request.chose_no_tool:
        # TGI drew a call of "no_tool" first, and reports that draw with the text of the second one.
        told = Generated([*split('{"function": {"_name": "no_tool"}}'), EOS_PIECE], "", "eos_token")
    if request.tool_call is None:
        message = {"role": "assistant", "content": generated.text}
    elif generated.finish_reason != "eos_token":
        said = generated.text
        cause = f"EOF while parsing a value at line 1 column {len(said)}"
        raise TgiError(
            "tool_error", f"Tool error: Failed to parse generated text: {cause} {orjson.dumps(said).decode()}"
        )
    else:
        call = {"description": None, "name": request.tool_call.name, "arguments": arguments}
        message = {
            "role": "assistant",
            "tool_calls": [{"id": request.tool_call.id, "type": "function", "function": call}],
        }
    return orjson.dumps(
        {
            "object": "chat.completion",
            "id": "",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "logprobs": _logprobs(request, told.pieces) if request.logprobs else None,
                    "finish_reason": told.openai_finish_reason,
                }
            ],
            "usage": _usage(request, told),
        }
    )


def chat_choices(bodies: Sequence[dict[str, Any]]) -> bytes:
    """Several chat completions of one prompt as one with that many choices; the prompt counts once."""
    usage = bodies[0]["usage"]
    usage["completion_tokens"] = sum(body["usage"]["completion_tokens"] for body in bodies)
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    choices = [{**body["choices"][0], "index": index} for index, body in enumerate(bodies)]
    return orjson.dumps({**bodies[0], "choices": choices, "usage": usage})


def chat_events(request: GenerationRequest, generated: Generated) -> list[Event]:
    """The events of a streamed chat completion, without the final [DONE]."""
    events: list[Event] = []
    last = generated.n_tokens - 1
    if request.tool_call is not None:
        events = _tool_events(request, generated)
    else:
        for index, piece in enumerate(generated.pieces):
            delta = {"role": "assistant", "content": "" if piece is EOS_PIECE else piece}
            finish_reason = generated.openai_finish_reason if index == last else None
            events.append((index, _chunk(request, piece, delta, finish_reason)))
    if request.include_usage:
        events.append((last, event({**_envelope(request), "choices": [], "usage": _usage(request, generated)})))
    return events


def _tool_events(request: GenerationRequest, generated: Generated) -> list[Event]:
    """Nothing until the tool's name is whole, then its arguments.

    The end token gives no event, so a streamed tool call **has no finish_reason** unless it was cut short.
    """
    assert request.tool_call is not None
    name: str | None = request.tool_call.name
    so_far = ""
    events: list[Event] = []
    head = "".join(request.tool_call.pieces("{}")[0])
    for index, piece in enumerate(generated.pieces):
        if piece is EOS_PIECE:
            break
        so_far += piece
        if not so_far.startswith(head):
            continue
        arguments = "{" if name is not None else piece
        if arguments == "}}":
            arguments = "}"
        function = {"name": name, "arguments": arguments}
        call = {"index": 0, "id": request.tool_call.id, "type": "function", "function": function}
        cut = index == generated.n_tokens - 1 and generated.finish_reason == "length"
        delta = {"role": "assistant", "tool_calls": [call]}
        events.append((index, _chunk(request, piece, delta, "length" if cut else None)))
        name = None
    return events


def completion_response(request: GenerationRequest, generated: Generated, _: str | None) -> bytes:
    """Return the body of /v1/completions."""
    choice = {
        "index": 0,
        "text": generated.text,
        "logprobs": None,
        "finish_reason": generated.openai_finish_reason,
    }
    envelope = {**_envelope(request), "object": "text_completion"}
    return orjson.dumps({**envelope, "choices": [choice], "usage": _usage(request, generated)})


def tokens_of(text: str) -> list[dict[str, Any]]:
    """Return a text's tokens as /tokenize lists them: one a word."""
    tokens: list[dict[str, Any]] = []
    start = 0
    for word in re.findall(r"\s*\S+|\s+$", text):
        tokens.append(
            {"id": zlib.crc32(word.encode()) % 32_000, "text": word, "start": start, "stop": start + len(word)}
        )
        start += len(word)
    return tokens


def generate_response(request: GenerationRequest, generated: Generated, _: str | None) -> bytes:
    """The body of /generate."""
    answer: dict[str, Any] = {"generated_text": _full_text(request, generated)}
    if request.details:
        answer["details"] = {
            "finish_reason": generated.finish_reason,
            "generated_tokens": generated.n_tokens,
            "seed": request.seed if request.do_sample else None,
            "prefill": [],
            "tokens": [_token(piece) for piece in generated.pieces],
        }
        if request.top_n_tokens:
            answer["details"]["top_tokens"] = [_top_tokens(request, piece) for piece in generated.pieces]
    return orjson.dumps(answer)


def generate_events(request: GenerationRequest, generated: Generated) -> list[Event]:
    """The events of /generate_stream, which has no [DONE]."""
    events: list[Event] = []
    last = generated.n_tokens - 1
    for index, piece in enumerate(generated.pieces):
        answer: dict[str, Any] = {"index": index + 1, "token": _token(piece)}
        if request.top_n_tokens:
            answer["top_tokens"] = _top_tokens(request, piece)
        answer |= {"generated_text": None, "details": None}
        if index == last:
            answer["generated_text"] = _full_text(request, generated)
            if request.details:
                answer["details"] = {
                    "finish_reason": generated.finish_reason,
                    "generated_tokens": generated.n_tokens,
                    "seed": request.seed if request.do_sample else None,
                    "input_length": request.prompt_tokens,
                }
        events.append((index, event(answer)))
    return events


def _full_text(request: GenerationRequest, generated: Generated) -> str:
    return request.inputs + generated.text if request.return_full_text else generated.text


def _usage(request: GenerationRequest, generated: Generated) -> dict[str, int]:
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": generated.n_tokens,
        "total_tokens": request.prompt_tokens + generated.n_tokens,
    }


def _envelope(request: GenerationRequest) -> dict[str, Any]:
    return {
        "object": "chat.completion.chunk",
        "id": "",
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": FINGERPRINT,
    }


def _chunk(request: GenerationRequest, piece: str, delta: dict[str, Any], finish_reason: str | None) -> bytes:
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": _logprobs(request, [piece]) if request.logprobs else None,
        "finish_reason": finish_reason,
    }
    return event({**_envelope(request), "choices": [choice], "usage": None})


def _logprobs(request: GenerationRequest, pieces: Sequence[str]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": piece,
                "logprob": logprob(piece),
                "top_logprobs": [
                    {"token": top["text"], "logprob": top["logprob"]} for top in _top_tokens(request, piece)
                ],
            }
            for piece in pieces
        ]
    }


def _token(piece: str) -> dict[str, Any]:
    return {
        "id": zlib.crc32(piece.encode()) % 32_000,
        "text": piece,
        "logprob": logprob(piece),
        "special": piece is EOS_PIECE,
    }


def _top_tokens(request: GenerationRequest, piece: str) -> list[dict[str, Any]]:
    texts = [piece, " the", " a", ".", " of"][: request.top_n_tokens or 0]
    return [{**_token(text), "logprob": logprob(piece, rank)} for rank, text in enumerate(texts)]
