"""llama.cpp's server, by itself or embedded through xllamacpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from gateway.backend.flavours.base import Catalogue, Flavour, Post, Refusal, context_exceeded, length_of, verbatim
from gateway.backend.flavours.llamacpp_tools import ForcedCall, call_schema, forced_tools
from gateway.contract.lowering import lower, schema_of
from gateway.types import JsonObject, Prompt

_NEEDS_JINJA = ("tools param requires --jinja", "tool_choice param requires --jinja")
# Adapters that a request does not name are off; but a request that names none keeps those of the slot's last draw, and
# so does an empty list. A number that is not loaded does no harm.
_NONE = {"id": 0, "scale": 0.0}


class LlamaCpp(Flavour):
    """llama.cpp picks adapters by number in each request, and takes one seed to mean "random"."""

    base_model = "default"
    catalogue_path = "/lora-adapters"
    properties_path = "/props"
    guarded_path = "/lora-adapters"  # /v1/models is open to all
    token_a_piece = True
    seeds = 2**32 - 1  # the 32-bit seed after these is "random"

    def arguments(self, prompt: Prompt, seed: int, catalogue: Catalogue) -> JsonObject:
        """Say for each draw which adapter applies, none included: those loaded would otherwise all apply."""
        arguments = super().arguments(prompt, seed, catalogue)
        adapter = prompt.adapter
        chosen = _NONE if adapter is None else {"id": catalogue.adapters[adapter], "scale": 1.0}
        arguments["extra_body"]["lora"] = [chosen]
        if forced_tools(prompt.sampling):
            arguments["tool_choice"] = "none"
        if prompt.sampling.logprobs:
            # Unsaid is 20 alternatives and 0 is no logprobs at all; what was not asked for is taken off again.
            arguments["top_logprobs"] = max(prompt.sampling.top_logprobs or 0, 1)
        return arguments

    def contract(self, prompt: Prompt) -> tuple[Any, Any]:
        """Tools as they are, and, where one must be called, the schema of its call."""
        forced = forced_tools(prompt.sampling)
        if not forced:
            return super().contract(prompt)
        if "forced call" not in prompt.lowered:
            schema = call_schema(forced, self.parameters)
            tools, _ = super().contract(prompt)
            prompt.lowered["forced call"] = tools, verbatim({"type": "json_object", "schema": schema})
        return prompt.lowered["forced call"]

    def forced_call(self, prompt: Prompt) -> ForcedCall | None:
        """A tool that must be called is asked for as JSON."""
        return ForcedCall() if forced_tools(prompt.sampling) else None

    def correct(self, body: Any, headers: Mapping[str, str], prompt: Prompt) -> Any:
        """A forced call comes as text."""
        call = self.forced_call(prompt)
        if call is None or not body.get("choices"):
            return body
        return {**body, "choices": [call.whole(body["choices"][0])]}

    def shows_tools(self, properties: JsonObject) -> bool:
        """A template without tools leaves them out without a word."""
        capabilities = properties.get("chat_template_caps")
        return not isinstance(capabilities, dict) or capabilities.get("supports_tools") is not False

    def model(self, adapter: str | None, catalogue: Catalogue) -> str:
        """The name is not looked at."""
        return self.base_model

    def parameters(self, schema: JsonObject) -> JsonObject:
        """llama.cpp hangs for ever on some patterns, and takes an empty schema for an object."""
        return lower(schema, "llamacpp")

    def response_format(self, wanted: JsonObject | None) -> Any:
        """A schema stands beside ``json_object``."""
        schema = None if wanted is None else schema_of(wanted)
        if schema is not None:
            return verbatim({"type": "json_object", "schema": lower(schema, "llamacpp")})
        return None if wanted is None else verbatim({"type": "json_object"})

    async def count(self, prompt: Prompt, post: Post) -> int | None:
        """Have the conversation written by its template, and that text tokenized as a prompt is."""
        text = (await post("/apply-template", self.conversation(prompt))).get("prompt")
        if not isinstance(text, str):
            return None
        asked = {"content": text, "add_special": True, "parse_special": True}
        return length_of((await post("/tokenize", asked)).get("tokens"))

    def read_catalogue(self, listing: Any) -> Catalogue:
        """An adapter's name is its file's, without the ending."""
        return Catalogue(self.base_model, {PurePath(entry["path"]).stem: int(entry["id"]) for entry in listing})

    def refusal(self, body: JsonObject) -> Refusal:
        """Too long a prompt is told in numbers; other messages may quote the request."""
        error = body.get("error")
        error = error if isinstance(error, dict) else {}
        if error.get("type") == "exceed_context_size_error":
            limit, prompt_tokens = error.get("n_ctx"), error.get("n_prompt_tokens")
            if isinstance(limit, int) and isinstance(prompt_tokens, int):
                return context_exceeded(limit, prompt_tokens)
            return Refusal(str(error.get("message")), "messages", too_long=True)
        if str(error.get("message")).startswith(_NEEDS_JINJA):
            return Refusal(operators_mistake="tools need llama.cpp's --jinja")
        return Refusal()

    def starting(self, body: JsonObject) -> bool:
        """It listens before its weights are loaded, and says so."""
        error = body.get("error")
        return isinstance(error, dict) and error.get("type") == "unavailable_error"
