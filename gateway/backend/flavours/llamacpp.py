"""llama.cpp's server, standalone or embedded through xllamacpp."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from gateway.backend.flavours.base import Catalogue, Flavour, Post, Refusal, context_exceeded, length_of, verbatim
from gateway.backend.flavours.llamacpp_tools import ForcedCall, call_schema, forced_tools
from gateway.contract.lowering import lower, schema_of
from gateway.types import JsonObject, Prompt

_NEEDS_JINJA = ("tools param requires --jinja", "tool_choice param requires --jinja")
# Adapters that a request does not name are off, but a request that names none, or an empty list, keeps those of the
# slot's last draw. A number that is not loaded is ignored.
_NONE = {"id": 0, "scale": 0.0}


class LlamaCpp(Flavour):
    """llama.cpp picks adapters by number in each request, and reads one seed as "random"."""

    base_model = "default"
    catalogue_path = "/lora-adapters"
    properties_path = "/props"
    guarded_path = "/lora-adapters"  # /v1/models is open to all
    token_a_piece = True
    seeds = 2**32 - 1  # the 32-bit seed after these is "random"

    def arguments(self, prompt: Prompt, seed: int, catalogue: Catalogue) -> JsonObject:
        """Name the adapter in each draw, also for none: otherwise all loaded adapters apply."""
        arguments = super().arguments(prompt, seed, catalogue)
        adapter = prompt.adapter
        chosen = _NONE if adapter is None else {"id": catalogue.adapters[adapter], "scale": 1.0}
        arguments["extra_body"]["lora"] = [chosen]
        if forced_tools(prompt.sampling):
            arguments["tool_choice"] = "none"
        if prompt.sampling.logprobs:
            # Its default is 20 alternatives, and 0 gives no logprobs; reading drops alternatives that nobody asked for.
            arguments["top_logprobs"] = max(prompt.sampling.top_logprobs or 0, 1)
        return arguments

    def contract(self, prompt: Prompt) -> tuple[Any, Any]:
        """Return tools as they are and, if one must be called, the schema of its call."""
        forced = forced_tools(prompt.sampling)
        if not forced:
            return super().contract(prompt)
        if "forced call" not in prompt.lowered:
            schema = call_schema(forced, self.parameters)
            tools, _ = super().contract(prompt)
            prompt.lowered["forced call"] = tools, verbatim({"type": "json_object", "schema": schema})
        return prompt.lowered["forced call"]

    def forced_call(self, prompt: Prompt) -> ForcedCall | None:
        return ForcedCall() if forced_tools(prompt.sampling) else None

    def correct(self, body: Any, headers: Mapping[str, str], prompt: Prompt) -> Any:
        call = self.forced_call(prompt)
        if call is None or not body.get("choices"):
            return body
        return {**body, "choices": [call.whole(body["choices"][0])]}

    def shows_tools(self, properties: JsonObject) -> bool:
        """Return False if the template has no tools: it leaves them out silently."""
        capabilities = properties.get("chat_template_caps")
        return not isinstance(capabilities, dict) or capabilities.get("supports_tools") is not False

    def model(self, adapter: str | None, catalogue: Catalogue) -> str:
        return self.base_model

    def parameters(self, schema: JsonObject) -> JsonObject:
        """llama.cpp never ends compiling some patterns, and takes an empty schema for an object."""
        return lower(schema, "llamacpp")

    def response_format(self, wanted: JsonObject | None) -> Any:
        """Put the schema next to ``json_object``."""
        schema = None if wanted is None else schema_of(wanted)
        if schema is not None:
            return verbatim({"type": "json_object", "schema": lower(schema, "llamacpp")})
        return None if wanted is None else verbatim({"type": "json_object"})

    async def count(self, prompt: Prompt, post: Post) -> int | None:
        """Render the conversation by the server's template, and tokenize the text as a prompt."""
        text = (await post("/apply-template", self.conversation(prompt))).get("prompt")
        if not isinstance(text, str):
            return None
        body = {"content": text, "add_special": True, "parse_special": True}
        return length_of((await post("/tokenize", body)).get("tokens"))

    def read_catalogue(self, listing: Any) -> Catalogue:
        """Name an adapter by its file, without the ending."""
        return Catalogue(self.base_model, {PurePath(entry["path"]).stem: int(entry["id"]) for entry in listing})

    def refusal(self, body: JsonObject) -> Refusal:
        """Pass on a prompt that is too long, in numbers; other messages may quote the request."""
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
        """llama.cpp listens before its weights are loaded, and says so."""
        error = body.get("error")
        return isinstance(error, dict) and error.get("type") == "unavailable_error"
