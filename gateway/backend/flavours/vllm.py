"""vLLM's OpenAI-compatible server."""

from __future__ import annotations

from typing import Any

from gateway.backend.flavours.base import Catalogue, Flavour
from gateway.types import JsonObject


class Vllm(Flavour):
    """vLLM follows OpenAI's API; base model and adapters are models of their own, to be looked up."""

    catalogue_path = "/v1/models"

    def model(self, adapter: str | None, catalogue: Catalogue) -> str:
        """Every name must be one that the server lists: it answers 404 to any other."""
        return catalogue.base_model if adapter is None else str(catalogue.adapters[adapter])

    def read_catalogue(self, listing: Any) -> Catalogue:
        """The model without a parent is the base; the others are adapters."""
        models = listing["data"]
        bases = [model["id"] for model in models if not model.get("parent")]
        return Catalogue(bases[0], {model["id"]: model["id"] for model in models if model.get("parent")})

    def refusal(self, body: JsonObject) -> str | None:
        """Too long a prompt is told in numbers; other messages may quote the request."""
        error = body.get("error", body)
        message = error.get("message") if isinstance(error, dict) else None
        return message if isinstance(message, str) and message.startswith("This model's maximum context") else None
