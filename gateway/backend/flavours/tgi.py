"""text-generation-inference, v3.3.7: the last version, whose protocol will not change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.backend.flavours.base import (
    Catalogue,
    Flavour,
    Post,
    Refusal,
    context_exceeded,
    length_of,
    refuse,
    verbatim,
)
from gateway.backend.flavours.tgi_tools import NO_TOOL, cut_call, history, without_hidden_draw
from gateway.contract.lowering import schema_of, tgi_parameters, tgi_response_format
from gateway.types import JsonObject, Prompt, Sampling

_MAX_STOPS = 4
_MAX_TOP_LOGPROBS = 5
# These messages name lengths, limits, templates and tools; any other may quote the request.
_SAFE_MESSAGES = ("Input validation error: ", "Template error: ", "Tool error: ")
# Its numbers: the limit, the prompt's tokens, and max_tokens where both together are over it.
_TOO_LONG = re.compile(
    r"Input validation error: `inputs`(?: tokens \+ `max_new_tokens`)? must (?:be <=|have less than) (\d{1,18})[^0-9]*"
    r"Given: (\d{1,18})(?: `inputs` tokens and (\d{1,18}) `max_new_tokens`)?"
)
_CALL_CUT_SHORT = "Tool error: Failed to parse generated text"  # and that text may follow


class Tgi(Flavour):
    """TGI misreads some explicit defaults, keeps stop strings in the text, and names its adapters as models."""

    base_model = "tgi"
    capacity_path = "/info"
    guarded_path = "/tokenize"
    guarded_body: ClassVar = {"inputs": "a"}
    seeds = 2**64
    token_a_piece = True
    keeps_stop_text = True
    hides_nameless_calls = True
    finish_reasons: ClassVar = {"stop": "stop", "length": "length", "stop_sequence": "stop"}

    def check(self, sampling: Sampling) -> None:
        """Refuse what TGI ignores, misreads or answers with a 422."""
        if sampling.logit_bias:
            raise refuse("logit_bias", "TGI does not apply it")
        if sampling.presence_penalty:
            # It would arrive as a repetition penalty of x + 2, which turns an answer into noise.
            raise refuse("presence_penalty", "TGI has none; frequency_penalty is the nearest")
        if len(sampling.stop) > _MAX_STOPS:
            raise refuse("stop", f"TGI takes at most {_MAX_STOPS} stop strings")
        if (sampling.top_logprobs or 0) > _MAX_TOP_LOGPROBS:
            raise refuse("top_logprobs", f"TGI gives at most {_MAX_TOP_LOGPROBS}")
        for index, tool in enumerate(sampling.tools):
            if tool["function"]["name"] == NO_TOOL:
                raise refuse(f"tools[{index}].function.name", f"TGI takes a call of {NO_TOOL} for no call at all")
        if sampling.tools and (sampling.response_format or {}).get("type", "text") != "text":
            raise refuse("response_format", "TGI cannot combine it with tools")

    def arguments(self, prompt: Prompt, seed: int, catalogue: Catalogue) -> JsonObject:
        """Leave out penalties of 0 and a ``top_p`` of 1, which TGI refuses or misreads."""
        arguments = super().arguments(prompt, seed, catalogue)
        arguments["messages"] = history(prompt.messages)
        arguments["frequency_penalty"] = arguments["frequency_penalty"] or None
        arguments["presence_penalty"] = None
        if arguments["top_p"] == 1:
            arguments["top_p"] = None
        # TGI always calls one tool at a time; parallel_tool_calls false means that, and true allows it.
        del arguments["extra_body"]
        return arguments

    def parameters(self, schema: JsonObject) -> JsonObject:
        """TGI puts all tools' parameters into one schema of its own, in which their references point nowhere."""
        return tgi_parameters(schema)

    def response_format(self, wanted: JsonObject | None) -> Any:
        """TGI takes a schema or a regular expression under ``value``; text is its default."""
        if wanted is None or wanted.get("type") == "text":
            return None
        return verbatim(tgi_response_format(schema_of(wanted)))

    async def count(self, prompt: Prompt, post: Post) -> int | None:
        """Render the conversation by the server's template, and tokenize it."""
        body = {**self.conversation(prompt), "messages": history(prompt.messages)}
        if prompt.sampling.tool_choice is not None:
            body["tool_choice"] = prompt.sampling.tool_choice
        return length_of((await post("/chat_tokenize", body)).get("tokenize_response"))

    def read_capacity(self, info: JsonObject) -> int | None:
        """Return ``--max-concurrent-requests``: one draw more than that is refused."""
        capacity = info.get("max_concurrent_requests")
        return capacity if type(capacity) is int and capacity >= 1 else None

    def correct(self, body: Any, headers: Mapping[str, str], prompt: Prompt) -> Any:
        """Correct finish reason and usage of a text that was drawn after a choice of no tool."""
        return without_hidden_draw(body, headers, prompt)

    def answer_in_refusal(self, body: JsonObject, prompt: Prompt) -> JsonObject | None:
        """Read a call that ``max_tokens`` cut short: it comes as an error that quotes it."""
        return cut_call(_message(body), prompt)

    def refusal(self, body: JsonObject) -> Refusal:
        """Pass on TGI's words on limits, templates and tools."""
        message = _message(body)
        if too_long := _TOO_LONG.match(message):
            limit, prompt_tokens, wanted = too_long.groups(default="0")
            return context_exceeded(int(limit), int(prompt_tokens), int(wanted))
        safe = message.startswith(_SAFE_MESSAGES) and not message.startswith(_CALL_CUT_SHORT)
        return Refusal(message) if safe else Refusal()

    def true_status(self, status: int, body: JsonObject) -> int:
        """Read the words: errors in a stream, and a call that max_tokens cut short, all say 422, overload included."""
        message = _message(body)
        if message == "Model is overloaded":
            return 429
        if status < 400 or message.startswith(_CALL_CUT_SHORT):
            return 422 if self.refusal(body) != Refusal() else 424
        return status


def _message(body: JsonObject) -> str:
    """Return the words of an error, which are one level deeper in a stream."""
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""
