"""Settings of a stub: given at construction, on its command line, or while it runs (POST /_stub/knobs)."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Fault(StrEnum):
    """The way in which a chosen request fails."""

    NONE = "none"
    STATUS = "status"  # the status of ``fault_status``, with TGI's error body
    HTML = "html"  # the status of ``fault_status``, with a proxy's HTML page
    HALF_JSON = "half_json"  # 200, a whole HTTP response around half a JSON document
    EMPTY = "empty"  # 200, no body (a stream: no event)
    GARBAGE = "garbage"  # 200, bytes that are not even text
    ERROR_FRAME = "error_frame"  # a stream: 200 and an error frame; a plain call: 424
    HANG = "hang"  # no answer, ever; a stream still gets its keep-alive comments
    DISCONNECT = "disconnect"  # the connection breaks in the middle of the answer
    DRIP = "drip"  # the whole answer, a few bytes at a time


@dataclass(slots=True, kw_only=True)
class AnyKnobs:
    """The part that the knobs of all stubs share."""

    api_key: str = ""
    healthy: bool = True
    record_requests: int = 64  # how many of the last requests GET /_stub/state lists

    def __post_init__(self) -> None:
        self.update({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def update(self, changes: Mapping[str, Any]) -> None:
        """Change some knobs.

        Raises:
            ValueError: A knob is unknown or its value has the wrong type.
        """
        hints = typing.get_type_hints(type(self))
        for name, value in changes.items():
            if name not in hints:
                raise ValueError(f"unknown knob: {name}")
            setattr(self, name, _coerced(name, hints[name], value))


@dataclass(slots=True, kw_only=True)
class Knobs(AnyKnobs):
    """Settings of the stub. Those of TGI's launcher have TGI's defaults; the rest make an instant, healthy server.

    A fault strikes a request when any selector picks it: ``fault_next`` (the next k requests), ``fault_probability``,
    ``fault_every`` (each k-th request: one of N candidates), its seed (``seed % fault_seed_modulo ==
    fault_seed_remainder``), or a text in its messages (``fault_text``).
    """

    model_id: str = "stub/base"
    adapters: tuple[str, ...] = ()  # LORA_ADAPTERS: any other adapter id is served by the base, silently
    dull_adapters: tuple[str, ...] = ()  # of those, the ones that answer with few different words: low rewards
    rich_adapters: tuple[str, ...] = ()  # and with many: high rewards
    max_concurrent_requests: int = 128
    max_input_tokens: int = 4095
    max_total_tokens: int = 4096
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_best_of: int = 2
    payload_limit_bytes: int = 2_000_000
    weights: str = ""  # another text is another base model behind the same name
    sampler: str = ""  # and another default of the sampler: greedy answers stay
    honours_n: bool = False  # n answers in one call, as vLLM and OpenAI give them; TGI drops n

    latency_ms: float | None = None  # every answer takes exactly this long; excludes the two below
    tokens_per_s: float = 0.0  # 0: all at once
    time_to_first_token_ms: float = 0.0
    keep_alive_s: float = 15.0
    answer_tokens_min: int = 16
    answer_tokens_max: int = 96

    fault: Fault = Fault.NONE
    fault_status: int = 500
    fault_after_tokens: int = 0  # the fault comes when this many tokens are generated (and streamed)
    fault_next: int = 0
    fault_probability: float = 0.0
    fault_every: int = 0
    fault_seed_modulo: int = 0
    fault_seed_remainder: int = 0
    fault_text: str = ""
    drip_bytes: int = 16
    drip_interval_ms: float = 5.0

    def due_s(self, index: int) -> float:
        """Return the seconds from a generation's start to its token ``index`` (from 0)."""
        if self.latency_ms is not None:
            return self.latency_ms / 1000
        return self.time_to_first_token_ms / 1000 + (index / self.tokens_per_s if self.tokens_per_s else 0.0)

    def tokens_after(self, elapsed_s: float, total: int) -> int:
        """Return how many of ``total`` tokens are generated ``elapsed_s`` after a generation's start."""
        last_s = self.due_s(total - 1)
        if elapsed_s >= last_s:
            return total
        if self.latency_ms is not None:
            return int(total * elapsed_s / last_s)
        if elapsed_s < self.due_s(0):
            return 0
        return min(total, 1 + int((elapsed_s - self.due_s(0)) * self.tokens_per_s))


def add_arguments(parser: argparse.ArgumentParser, knobs: type) -> None:
    """Add to ``parser`` one option for each field of the dataclass ``knobs``: ``--latency-ms 50``."""
    hints = typing.get_type_hints(knobs)
    for field in dataclasses.fields(knobs):
        parser.add_argument("--" + field.name.replace("_", "-"), type=_from_text(hints[field.name]), default=None)


def chosen(arguments: argparse.Namespace, knobs: type) -> dict[str, Any]:
    """Return the knobs that the command line set."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(knobs)}
    return {name: value for name, value in values.items() if value is not None}


def _from_text(hint: Any) -> Any:
    if hint is bool:
        return lambda text: {"true": True, "false": False}[text.lower()]
    if hint == tuple[str, ...]:
        return lambda text: tuple(part for part in text.split(",") if part)
    if hint == float | None:
        return float
    return hint


def _coerced(name: str, hint: Any, value: Any) -> Any:
    """Return JSON's ``value`` in the knob's own type."""
    if hint == float | None:
        return None if value is None else _coerced(name, float, value)
    if hint == tuple[str, ...] and isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"knob {name}: {value!r} is not of type {hint}")
