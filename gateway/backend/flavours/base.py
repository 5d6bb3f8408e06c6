"""A flavour: how one kind of server is called. The base class is for a server that follows OpenAI's API exactly."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from gateway.backend.flavours.llamacpp_tools import ForcedCall
from gateway.contract.lowering import lower_tools
from gateway.errors import UnsupportedField
from gateway.types import FinishReason, JsonObject, Prompt, Sampling

# OpenAI's 0 for servers that refuse it: nucleus sampling keeps at least one token, so both mean the same.
_LEAST_TOP_P = 1e-6

Post = Callable[[str, JsonObject], Awaitable[JsonObject]]
"""POSTs a body to a path of the server; returns the JSON object that answers it, an empty one if there is none."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models that a replica serves: the base model's name, and the name or number of each adapter."""

    base_model: str
    adapters: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a server refused a request, without any text of the request.

    Attributes:
        reason: The server's words, if they are known to quote nothing.
        param: The field that it named.
        too_long: The messages, alone or with ``max_tokens``, do not fit into the model's context.
        operators_mistake: What the server was started without, if that is the reason.
    """

    reason: str | None = None
    param: str | None = None
    too_long: bool = False
    operators_mistake: str | None = None


def context_exceeded(limit_tokens: int, prompt_tokens: int, wanted_tokens: int = 0) -> Refusal:
    """Return the refusal of a request that is too long, in OpenAI's words: clients look for them."""
    reason = f"This model's maximum context length is {limit_tokens} tokens."
    reason += f" However, your messages have {prompt_tokens} tokens"
    if prompt_tokens < limit_tokens and wanted_tokens:
        wanted = f" and max_tokens asks for {wanted_tokens} more. Please reduce max_tokens or the messages."
        return Refusal(reason + wanted, "max_tokens", too_long=True)
    return Refusal(f"{reason}. Please reduce their length.", "messages", too_long=True)


class Flavour:
    """The calls to one kind of server, and the reading of its answers. Subclasses hold the differences to OpenAI's API.

    Attributes:
        base_model: Name of the base model, if it is always the same.
        health_path: A route that needs no API key.
        guarded_path: A cheap route that needs the API key.
        guarded_body: The body to POST to it; None for GET.
        properties_path: Tells whether the server's template knows tools; None if that need not be asked.
        catalogue_path: Lists what the server serves; None if that need not be asked.
        load_adapter_path: Loads an adapter while the server serves; None if it takes adapters at its start only.
        capacity_path: Tells how many draws the server takes at once; None if it queues any number itself.
        seeds: How many different seeds the server takes.
        token_a_piece: Each piece of a stream is one token, unless it has characters that are not ASCII.
        stream_options: What a stream reports besides the answer.
        keeps_stop_text: A stop string that ended an answer is still in its text.
        hides_nameless_calls: A streamed call that was cut before its name leaves only the usage in the stream.
    """

    base_model: ClassVar[str] = ""
    health_path: ClassVar[str] = "/health"
    guarded_path: ClassVar[str] = "/v1/models"
    guarded_body: ClassVar[JsonObject | None] = None
    properties_path: ClassVar[str | None] = None
    catalogue_path: ClassVar[str | None] = None
    load_adapter_path: ClassVar[str | None] = None
    capacity_path: ClassVar[str | None] = None
    seeds: ClassVar[int] = 2**63
    token_a_piece: ClassVar[bool] = False
    stream_options: ClassVar[Mapping[str, bool]] = {"include_usage": True}
    keeps_stop_text: ClassVar[bool] = False
    hides_nameless_calls: ClassVar[bool] = False
    finish_reasons: ClassVar[Mapping[str, FinishReason]] = {
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool_calls",
        "content_filter": "content_filter",
    }

    def check(self, sampling: Sampling) -> None:
        """Raise ``UnsupportedField`` for a field that the server cannot serve."""

    def arguments(self, prompt: Prompt, seed: int, catalogue: Catalogue) -> JsonObject:
        """Return a draw's arguments of ``AsyncInferenceClient.chat_completion``; None leaves a field out.

        Raises:
            KeyError: The catalogue does not hold the prompt's adapter.
        """
        sampling = prompt.sampling
        tools, response_format = self.contract(prompt)
        return {
            "messages": prompt.messages,
            "model": self.model(prompt.adapter, catalogue),
            "seed": seed % self.seeds,
            "temperature": sampling.temperature,
            "top_p": None if sampling.top_p is None else max(sampling.top_p, _LEAST_TOP_P),
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "logprobs": sampling.logprobs or None,
            "top_logprobs": sampling.top_logprobs if sampling.logprobs else None,
            "tools": tools,
            "tool_choice": sampling.tool_choice,
            "response_format": response_format,
            "extra_body": {
                "logit_bias": sampling.logit_bias or None,
                "parallel_tool_calls": sampling.parallel_tool_calls,
            },
        }

    def correct(self, body: Any, headers: Mapping[str, str], prompt: Prompt) -> Any:
        """Return a whole answer with the server's known errors in it corrected."""
        return body

    def forced_call(self, prompt: Prompt) -> ForcedCall | None:
        """Return a reader of the call in an answer asked for as JSON; None if the server makes calls itself."""
        return None

    def shows_tools(self, properties: JsonObject) -> bool:
        """Return whether the server's template puts tools into the prompt, by the answer of ``properties_path``."""
        return True

    def answer_in_refusal(self, body: JsonObject, prompt: Prompt) -> JsonObject | None:
        """Return the answer in an error's body, as a chat completion; None if there is none."""
        return None

    def model(self, adapter: str | None, catalogue: Catalogue) -> str:
        """Return the ``model`` that addresses the adapter, or the base model if there is none."""
        return self.base_model if adapter is None else adapter

    def contract(self, prompt: Prompt) -> tuple[Any, Any]:
        """Return tools and response format as this server takes them, lowered once for all draws of a race."""
        sampling, kind = prompt.sampling, type(self).__name__
        if not sampling.tools and sampling.response_format is None:
            return None, None
        if kind not in prompt.lowered:
            tools = verbatim(lower_tools(sampling.tools, self.parameters)) if sampling.tools else None
            prompt.lowered[kind] = tools, self.response_format(sampling.response_format)
        return prompt.lowered[kind]

    def parameters(self, schema: JsonObject) -> JsonObject:
        """Return a tool's parameters as this server takes them."""
        return schema

    def response_format(self, wanted: JsonObject | None) -> Any:
        """Return the response format as this server takes it."""
        return None if wanted is None else verbatim(wanted)

    async def count(self, prompt: Prompt, post: Post) -> int | None:
        """Return the prompt's tokens as the server counts them, template included; None if it does not count."""
        return None

    def conversation(self, prompt: Prompt) -> JsonObject:
        """Return the parts of a prompt that become the model's input: messages and tools, as this server takes them."""
        tools, _ = self.contract(prompt)
        shown = tools is not None and prompt.sampling.tool_choice != "none"
        return {"messages": prompt.messages, **({"tools": tools} if shown else {})}

    def read_catalogue(self, listing: Any) -> Catalogue:
        """Read the answer of ``catalogue_path``; raise LookupError, TypeError or AttributeError for another shape."""
        raise NotImplementedError

    def read_capacity(self, info: JsonObject) -> int | None:
        """Return how many draws the server takes at once, from the answer of ``capacity_path``; None: no number."""
        return None

    def refusal(self, body: JsonObject) -> Refusal:
        """Return why the server refused a request, as far as its error can be passed on."""
        return Refusal()

    def starting(self, body: JsonObject) -> bool:
        """Return whether an error says that the server does not serve yet: another replica should be used."""
        return False

    def true_status(self, status: int, body: JsonObject) -> int:
        """Return the HTTP status that an error deserves: some come under 200, in a stream or a whole answer."""
        if status >= 400:
            return status
        error = body.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        return code if isinstance(code, int) and 400 <= code <= 599 else 500


def length_of(tokens: object) -> int | None:
    """Return the length of a list of tokens; None if it is no list."""
    return len(tokens) if isinstance(tokens, list) else None


def verbatim(value: object) -> orjson.Fragment:
    """Keep JSON as it is: the hub's client rewrites response formats for TGI and drops every null in them."""
    return orjson.Fragment(orjson.dumps(value))


def refuse(field_name: str, reason: str) -> UnsupportedField:
    return UnsupportedField(f"{field_name}: {reason}", param=field_name)
