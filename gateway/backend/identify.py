"""Identify a server by the routes that only its kind has, and read its limits there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.backend.flavours import FLAVOURS, Flavour
from gateway.types import JsonObject

FALLBACK = "tgi"
"""The kind assumed of a server that does not say what it is."""

Ask = Callable[[str], Awaitable[Any]]
"""GETs a path of the server; returns its JSON, or None if there is no such route or no answer."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's kind and limits by its own account; None for an unknown limit.

    Attributes:
        kind: The flavour that calls it.
        name: For people.
        max_tokens: Most tokens of prompt and answer together.
        max_draws: Most draws at once.
        max_input_tokens: Most tokens of the prompt alone.
    """

    kind: str
    name: str
    max_tokens: int | None = None
    max_draws: int | None = None
    max_input_tokens: int | None = None

    @property
    def max_prompt_tokens(self) -> int | None:
        return self.max_tokens if self.max_input_tokens is None else self.max_input_tokens

    @property
    def limits(self) -> JsonObject:
        """The known limits, for readiness."""
        known = {
            "max_tokens": self.max_tokens,
            "max_input_tokens": self.max_input_tokens,
            "max_draws": self.max_draws,
        }
        return {name: value for name, value in known.items() if value is not None}


def flavour_of(kind: str) -> Flavour:
    """Return the flavour of a kind in the settings."""
    return FLAVOURS[FALLBACK if kind == "auto" else kind]


async def identify(ask: Ask) -> Identity | None:
    """Return what the server is; None if it does not say."""
    info, props, sglang, version, models = await asyncio.gather(
        ask("/info"), ask("/props"), ask("/get_model_info"), ask("/version"), ask("/v1/models")
    )
    return _tgi(info) or _llamacpp(props) or _sglang(sglang, models) or _vllm(version, models)


def contradiction(kind: str, found: Identity) -> str | None:
    """Return in words how a server differs from the kind in the settings; None if it does not."""
    if kind in ("auto", found.kind):
        return None
    return f"it is {found.name}, but GATEWAY_BACKEND__KIND is {kind}: set it to {found.kind} or auto"


def _tgi(info: Any) -> Identity | None:
    if not isinstance(info, dict):
        return None
    router = info.get("router")
    if not (isinstance(router, str) and router.startswith("text-generation")) and "max_total_tokens" not in info:
        return None
    name = f"text-generation-inference {_text(info.get('version'))}".rstrip()
    return Identity(
        "tgi",
        name,
        _count(info.get("max_total_tokens")),
        _count(info.get("max_concurrent_requests")),
        _count(info.get("max_input_tokens")),
    )


def _llamacpp(props: Any) -> Identity | None:
    settings = props.get("default_generation_settings") if isinstance(props, dict) else None
    if not isinstance(settings, dict):
        return None
    name = f"llama.cpp {_text(props.get('build_info'))}".rstrip()
    return Identity("llamacpp", name, _count(settings.get("n_ctx")), _count(props.get("total_slots")))


def _sglang(info: Any, models: Any) -> Identity | None:
    if not isinstance(info, dict) or "model_path" not in info:
        return None
    return Identity("vllm", "SGLang", _longest(models))  # it answers as vLLM does


def _vllm(version: Any, models: Any) -> Identity | None:
    number = version.get("version") if isinstance(version, dict) else None
    return Identity("vllm", f"vLLM {number}", _longest(models)) if isinstance(number, str) else None


def _longest(models: Any) -> int | None:
    """Return ``max_model_len`` of the first listed model that has one."""
    listed = models.get("data") if isinstance(models, dict) else None
    lengths = [_count(model.get("max_model_len")) for model in listed or () if isinstance(model, dict)]
    return next((length for length in lengths if length is not None), None)


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _text(value: object) -> str:
    return value[:40] if isinstance(value, str) else ""
