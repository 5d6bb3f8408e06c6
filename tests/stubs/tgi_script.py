"""Directions in the last message that make the stub say one thing: ``@@{"say": "Hello"}@@``.

The model server behind TGI's recorded router took the same ones (``recorded/tgi.jsonl``), so that its requests can be
sent to the stub: ``say`` is the answer, ``no_eos`` goes on until the limit, ``if_grammar`` is said in place of ``say``
while a grammar holds, ``fail_at`` breaks the generation after so many tokens, ``raw_ids`` [2] is the end token alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from tests.stubs.tgi_errors import TgiError
from tests.stubs.tgi_generation import split

_DIRECTIONS = re.compile(r"@@(\{.*\})@@", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Script:
    """The directions for an answer."""

    say: str
    goes_on: bool = False
    if_grammar: str | None = None
    fail_at_tokens: int | None = None

    def pieces(self, limit_tokens: int) -> list[str]:
        """Return the answer's tokens, at most a little more than ``limit_tokens`` of them."""
        said = split(self.say) if self.say else []
        return said + [" more"] * (limit_tokens + 1) if self.goes_on else said

    def failure(self) -> TgiError:
        """Return the error that breaks the generation."""
        return TgiError("generation", "Request failed during generation: Server error: CUDA out of memory (scripted)")

    def call(self) -> tuple[str, str] | None:
        """Return name and arguments of the tool call that the grammar makes of this; None for the tool ``no_tool``.

        Raises:
            TgiError: The text is no call.
        """
        text = self.say if self.if_grammar is None else self.if_grammar
        try:
            function: dict[str, Any] = orjson.loads(text)["function"]
        except (orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise unparsed("expected value at line 1 column 1", text) from error
        name = function.pop("_name")
        return None if name == "no_tool" else (name, orjson.dumps(function).decode())


def read_script(text: str) -> Script | None:
    """Return the directions in a message's text, where there are any."""
    found = _DIRECTIONS.search(text) if "@@" in text else None
    if found is None:
        return None
    directions = orjson.loads(found[1])
    return Script(
        directions.get("say", ""),
        directions.get("no_eos", False),
        directions.get("if_grammar"),
        directions.get("fail_at"),
    )


def unparsed(reason: str, text: str) -> TgiError:
    """Return the error for a tool call that TGI cannot read; its words hold the text."""
    return TgiError("tool_error", f"Tool error: Failed to parse generated text: {reason} {orjson.dumps(text).decode()}")
