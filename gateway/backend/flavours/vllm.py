"""vLLM's OpenAI-compatible server."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from gateway.backend.flavours.base import Catalogue, Flavour, Post, Refusal, verbatim
from gateway.contract.lowering import lower, schema_of
from gateway.types import JsonObject, Prompt

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]]{0,63}")
_LENGTH_FIELDS = ("max_tokens", "max_completion_tokens", "messages")
# Ways in which its versions, and SGLang, which answers as vLLM does, say that a request is too long: words and numbers.
_TOO_LONG = re.compile(
    r"This model's maximum context length is \d"
    r"|'?max_(?:completion_)?tokens'?(?:=\d+ cannot be greater than | or 'max_completion_tokens' is too large)"
    r"|The \w+ prompt \(length \d+\) (?:plus [a-z ]+\(at least 1\) )?is longer than the maximum model length"
    r"|The input \(\d+ tokens\) is longer than the model's context length"
    r"|Requested token count exceeds the model's maximum context length"
)
_SAFE = re.compile(r"Requested (?:sample|prompt) logprobs of \d+")
_NEEDS_PARSER = re.compile(
    r'"auto" tool choice requires --enable-auto-tool-choice|tool_choice=.{1,200} requires --tool-call-parser'
)


class Vllm(Flavour):
    """vLLM follows OpenAI's API; base model and adapters are models of their own, to be looked up."""

    catalogue_path = "/v1/models"
    load_adapter_path = "/v1/load_lora_adapter"
    stream_options: ClassVar = {"include_usage": True, "continuous_usage_stats": True}

    def model(self, adapter: str | None, catalogue: Catalogue) -> str:
        """Return a name that the server lists: it answers 404 to any other."""
        return catalogue.base_model if adapter is None else str(catalogue.adapters[adapter])

    def parameters(self, schema: JsonObject) -> JsonObject:
        """Leave out what vLLM's grammars do not know: it refuses a request for one such keyword."""
        return lower(schema, "vllm")

    def response_format(self, wanted: JsonObject | None) -> Any:
        schema = None if wanted is None else schema_of(wanted)
        if wanted is None or schema is None:
            return super().response_format(wanted)
        named = {**wanted["json_schema"], "schema": lower(schema, "vllm")}
        return verbatim({**wanted, "json_schema": named})

    async def count(self, prompt: Prompt, post: Post) -> int | None:
        """Have the conversation rendered and tokenized; SGLang's route of that name takes no messages."""
        count = (await post("/tokenize", self.conversation(prompt))).get("count")
        return count if type(count) is int else None

    def read_catalogue(self, listing: Any) -> Catalogue:
        """Read the model without a parent as the base, the others as adapters."""
        models = listing["data"]
        bases = [model["id"] for model in models if not model.get("parent")]
        return Catalogue(bases[0], {model["id"]: model["id"] for model in models if model.get("parent")})

    def refusal(self, body: JsonObject) -> Refusal:
        """Pass on limits, which are numbers, and names of fields; other words may quote the request."""
        error = body.get("error", body)
        error = error if isinstance(error, dict) else {}
        given = error.get("message")
        message = given if isinstance(given, str) else ""
        if _NEEDS_PARSER.match(message):
            return Refusal(operators_mistake="tools need vLLM's --enable-auto-tool-choice and --tool-call-parser")
        too_long = _TOO_LONG.match(message) is not None
        named = error.get("param")
        param = named if isinstance(named, str) and _FIELD.fullmatch(named) else None
        if too_long and param not in _LENGTH_FIELDS:
            param = "max_tokens" if message.lstrip("'").startswith("max_") else "messages"
        return Refusal(message if too_long or _SAFE.match(message) else None, param, too_long)
