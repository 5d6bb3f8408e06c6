"""What a flavour may say, and the server that follows OpenAI's API to the letter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from gateway.backend.flavours.llamacpp_tools import ForcedCall
from gateway.contract.lowering import lower_tools
from gateway.errors import UnsupportedField
from gateway.types import FinishReason, JsonObject, Prompt, Sampling

# Nucleus sampling keeps at least one token, so this is OpenAI's 0 for servers that want a number above it.
_LEAST_TOP_P = 1e-6

Post = Callable[[str, JsonObject], Awaitable[JsonObject]]
"""POSTs a body to a path of the server; gives the JSON object that it answers, an empty one where it gives none."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a replica says it serves: the base model's name, and by which name or number it knows each adapter."""

    base_model: str
    adapters: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a server refused a request, without any text of the request.

    ``reason``: the server's words, where they are known to quote nothing. ``param``: the field that it named.
    ``too_long``: the messages, with ``max_tokens`` or alone, do not fit into the model's context.
    ``operators_mistake``: what the server was started without, where that is why.
    """

    reason: str | None = None
    param: str | None = None
    too_long: bool = False
    operators_mistake: str | None = None


def context_exceeded(limit_tokens: int, prompt_tokens: int, wanted_tokens: int = 0) -> Refusal:
    """The refusal of a request that is too long, in OpenAI's words: clients look for them."""
    reason = (
        f"This model's maximum context length is {limit_tokens} tokens. However, your messages have {prompt_tokens}"
    )
    if prompt_tokens < limit_tokens and wanted_tokens:
        asked = (
            f"{reason} tokens and max_tokens asks for {wanted_tokens} more. Please reduce max_tokens or the messages."
        )
        return Refusal(asked, "max_tokens", too_long=True)
    return Refusal(f"{reason} tokens. Please reduce their length.", "messages", too_long=True)


class Flavour:
    """How one kind of server is asked and understood. Subclasses hold only what differs from OpenAI's API."""

    base_model: ClassVar[str] = ""
    """Name that addresses the base model, where it is always the same."""
    health_path: ClassVar[str] = "/health"
    guarded_path: ClassVar[str] = "/v1/models"
    """A route that asks for the server's API key, which ``health_path`` does not; it costs nothing to be asked."""
    guarded_body: ClassVar[JsonObject | None] = None
    """What is sent to it by POST; None asks by GET."""
    properties_path: ClassVar[str | None] = None
    """Where the server tells whether its template knows tools; None where it refuses them itself, or always does."""
    catalogue_path: ClassVar[str | None] = None
    """Where the server lists what it serves; None where it need not be asked."""
    load_adapter_path: ClassVar[str | None] = None
    """Where the server takes an adapter while it serves; None where it takes them at its start only."""
    capacity_path: ClassVar[str | None] = None
    """Where the server says how many draws it takes at once; None where it queues any number by itself."""
    seeds: ClassVar[int] = 2**63
    """How many seeds the server tells apart."""
    token_a_piece: ClassVar[bool] = False
    """Whether each piece of a stream is one token, unless it has characters that are not ASCII."""
    stream_options: ClassVar[Mapping[str, bool]] = {"include_usage": True}
    """What a stream is asked to tell beside the answer."""
    keeps_stop_text: ClassVar[bool] = False
    """Whether a stop string that ended an answer is still in its text."""
    hides_nameless_calls: ClassVar[bool] = False
    """Whether a streamed call that was cut before its name leaves nothing in the stream but the usage."""
    finish_reasons: ClassVar[Mapping[str, FinishReason]] = {
        "stop": "stop",
        "length": "length",
        "tool_calls": "tool_calls",
        "content_filter": "content_filter",
    }

    def check(self, sampling: Sampling) -> None:
        """Refuse what the server cannot serve.

        Raises:
            UnsupportedField: Names the field.
        """

    def arguments(self, prompt: Prompt, seed: int, catalogue: Catalogue) -> JsonObject:
        """The draw as arguments of ``AsyncInferenceClient.chat_completion``; None is "not said" and is left out.

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
        """A whole answer with what the server says wrongly about it put right."""
        return body

    def forced_call(self, prompt: Prompt) -> ForcedCall | None:
        """Reads the call out of an answer, where it was asked for as JSON; None where the server makes calls itself."""
        return None

    def shows_tools(self, properties: JsonObject) -> bool:
        """Whether the server's template puts tools into the prompt, by what ``properties_path`` answered."""
        return True

    def answer_in_refusal(self, body: JsonObject, prompt: Prompt) -> JsonObject | None:
        """The answer that an error's body holds, as a chat completion; None where it holds none."""
        return None

    def model(self, adapter: str | None, catalogue: Catalogue) -> str:
        """The ``model`` that addresses the adapter, or the base where there is none."""
        return self.base_model if adapter is None else adapter

    def contract(self, prompt: Prompt) -> tuple[Any, Any]:
        """Tools and response format as this server takes them, lowered once for all draws of a race."""
        sampling, kind = prompt.sampling, type(self).__name__
        if not sampling.tools and sampling.response_format is None:
            return None, None
        if kind not in prompt.lowered:
            tools = verbatim(lower_tools(sampling.tools, self.parameters)) if sampling.tools else None
            prompt.lowered[kind] = tools, self.response_format(sampling.response_format)
        return prompt.lowered[kind]

    def parameters(self, schema: JsonObject) -> JsonObject:
        """A tool's parameters as this server can take them."""
        return schema

    def response_format(self, wanted: JsonObject | None) -> Any:
        """The response format as this server writes it, its schema as it can take it."""
        return None if wanted is None else verbatim(wanted)

    async def count(self, prompt: Prompt, post: Post) -> int | None:
        """Return the prompt's tokens as the server counts them, template included; None where it does not count."""
        return None

    def conversation(self, prompt: Prompt) -> JsonObject:
        """Return what of a prompt becomes the model's input: messages and tools, as this server takes them."""
        tools, _ = self.contract(prompt)
        shown = tools is not None and prompt.sampling.tool_choice != "none"
        return {"messages": prompt.messages, **({"tools": tools} if shown else {})}

    def read_catalogue(self, listing: Any) -> Catalogue:
        """Understand what ``catalogue_path`` answered.

        Raises:
            LookupError, TypeError, AttributeError: The listing has another shape.
        """
        raise NotImplementedError

    def read_capacity(self, info: JsonObject) -> int | None:
        """Return how many draws the server takes at once, from what ``capacity_path`` answered; None: no number."""
        return None

    def refusal(self, body: JsonObject) -> Refusal:
        """Why the server refused a request, as far as its error can be passed on."""
        return Refusal()

    def starting(self, body: JsonObject) -> bool:
        """Whether an error says that the server does not serve yet: another replica should."""
        return False

    def true_status(self, status: int, body: JsonObject) -> int:
        """The HTTP status that an error deserves: some are reported under 200, in a stream or even out of one."""
        if status >= 400:
            return status
        error = body.get("error")
        code = error.get("code") if isinstance(error, dict) else None
        return code if isinstance(code, int) and 400 <= code <= 599 else 500


def length_of(tokens: object) -> int | None:
    """Return how many tokens a server has listed; None where it is no list."""
    return len(tokens) if isinstance(tokens, list) else None


def verbatim(value: object) -> orjson.Fragment:
    """Write JSON as it is: the hub's client rewrites response formats for TGI and drops every null it finds."""
    return orjson.Fragment(orjson.dumps(value))


def refuse(field_name: str, reason: str) -> UnsupportedField:
    """The error that names ``field_name``."""
    return UnsupportedField(f"{field_name}: {reason}", param=field_name)
