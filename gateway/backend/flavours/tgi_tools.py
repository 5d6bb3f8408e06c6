"""Tool calls of text-generation-inference: the history as it reads it, and the parts it leaves out of an answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from gateway.metering import tokens_at_most
from gateway.types import JsonObject, Message, Prompt

NO_TOOL = "no_tool"
"""The tool that TGI adds if the model may choose: a call of it means "answer in text"."""

# Debug output of a Rust string ends the message, and holds what was generated.
_CUT_CALL = re.compile(r'Tool error: Failed to parse generated text: EOF [^"]*"(.*)"', re.DOTALL)
_RUST_ESCAPE = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|(.))", re.DOTALL)
_RUST_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0"}
_CALL_TEXT = re.compile(
    r'\s*\{\s*"function"\s*:\s*\{\s*"_name"\s*:\s*"(?P<name>[^"\\]+)"\s*,?\s*(?P<rest>.*)', re.DOTALL
)


def history(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the conversation as TGI reads it: otherwise earlier calls would be lost, or their arguments quoted twice.

    TGI reads ``content`` first, and if there is any, even "", the calls never reach the prompt. So a message with calls
    has none. The assistant's text before its calls becomes the description of the first: TGI writes that into the
    prompt in front of the call's name. A message of its own would not do: many templates refuse two in a row.
    """
    return [_with_calls(message) if message.get("tool_calls") else message for message in messages]


def without_hidden_draw(body: Any, headers: Mapping[str, str], prompt: Prompt) -> Any:
    """Return a text's own finish reason and usage, not those of the draw in which the model chose to call no tool.

    TGI draws twice then. The whole answer has the second draw's text with the first draw's finish reason, usage and
    logprobs; the second draw's token count is in a header, its logprobs are nowhere.
    """
    sampling = prompt.sampling
    choice = body["choices"][0] if sampling.tools and sampling.tool_choice in (None, "auto") else None
    if choice is None or choice["message"].get("tool_calls"):
        return body
    counted = headers.get("x-generated-tokens", "")
    drawn = int(counted) if counted.isascii() and counted.isdigit() and len(counted) < 9 else None
    text_tokens = tokens_at_most(choice["message"].get("content") or "") if drawn is None else drawn
    cut = drawn is not None and sampling.max_tokens is not None and drawn >= sampling.max_tokens
    usage = {**body["usage"], "completion_tokens": body["usage"]["completion_tokens"] + text_tokens}
    shown = {**choice, "finish_reason": "length" if cut else "stop", "logprobs": None}
    return {**body, "choices": [shown], "usage": usage}


def cut_call(error_message: str, prompt: Prompt) -> JsonObject | None:
    """Return the answer in TGI's error for a call that ``max_tokens`` cut short: the call so far, and ``length``.

    The error has no usage. Unknown counts are taken as the largest possible.
    """
    cut = _CUT_CALL.fullmatch(error_message)
    if cut is None:
        return None
    text = _RUST_ESCAPE.sub(_unescaped, cut[1])
    call = _CALL_TEXT.fullmatch(text)
    message: JsonObject = {"role": "assistant", "content": None}
    if call is not None and call["name"] != NO_TOOL:
        function = {"name": call["name"], "arguments": "{" + call["rest"]}
        message["tool_calls"] = [{"id": "0", "type": "function", "function": function}]
    sampling = prompt.sampling
    usage = {
        "prompt_tokens": tokens_at_most([prompt.messages, sampling.tools]),
        "completion_tokens": tokens_at_most(text) if sampling.max_tokens is None else sampling.max_tokens,
    }
    return {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], "usage": usage}


def _with_calls(message: Message) -> Message:
    calls = [{**call, "function": _function(call["function"])} for call in message["tool_calls"]]
    if message["content"]:
        calls[0]["function"]["description"] = message["content"]
    sent: JsonObject = {**message, "tool_calls": calls}
    del sent["content"]
    return sent  # type: ignore[return-value]


def _function(function: JsonObject) -> JsonObject:
    """Return the function with its arguments as an object: TGI would quote a string once more."""
    try:
        arguments = orjson.loads(function["arguments"])
    except orjson.JSONDecodeError:
        arguments = None
    return {**function, "arguments": arguments} if isinstance(arguments, dict) else function


def _unescaped(escape: re.Match[str]) -> str:
    if escape[1] is not None:
        return chr(int(escape[1], 16)) if int(escape[1], 16) < 0x110000 else "\N{REPLACEMENT CHARACTER}"
    return _RUST_ESCAPES.get(escape[2], escape[2])
