"""Compare a stub's answers with recorded answers of the real server.

``differences(row, answer)`` names what differs in status, content type, shape, error words or finish reasons. Values
that depend on the tokenizer (token counts, positions in a body, logprobs) are not compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

FOLDER = Path(__file__).parent / "recorded"

_REPEATED = re.compile(r"^.* \((\d+) characters: «(.+)» repeated\)$", re.DOTALL)
_POSITION = re.compile(r" at line \d+ column \d+")
_NUMBER = re.compile(r"\d+")
_PARSER_WORDS = re.compile(
    r"(Failed to parse the request body as JSON:|Failed to parse generated text:|\d validation errors?:).*", re.DOTALL
)
_NESTED = re.compile(r"^<(\d+) nested objects>$")
_BYTES = re.compile(r"^<(\d+) bytes>$")


@dataclass(frozen=True, slots=True)
class Answered:
    """A server's answer; status -1 if the connection broke."""

    status: int
    content_type: str | None
    content: bytes


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the recorded rows of ``recorded/NAME.jsonl``."""
    for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        yield orjson.loads(line)


async def ask(http: aiohttp.ClientSession, url: str, request: dict[str, Any]) -> Answered:
    """Send one recorded request to the server at ``url``."""
    data = None
    if "body" in request:
        data = json.dumps(_expanded(request["body"])).encode()  # orjson writes no 400 levels
    elif "raw" in request:
        size = _BYTES.match(request["raw"])
        data = b"x" * int(size[1]) if size else request["raw"].encode()
    headers = {"content-type": "application/json", **request.get("headers", {})}
    try:
        async with http.request(request["method"], url + request["path"], data=data, headers=headers) as response:
            return Answered(response.status, response.headers.get("content-type"), await response.read())
    except aiohttp.ClientError:
        return Answered(-1, None, b"")


def recorded(answer: Answered) -> dict[str, Any]:
    """Return an answer as a row holds it: ``body``, ``events`` or ``text``, by its content type."""
    row: dict[str, Any] = {"status": answer.status, "content_type": answer.content_type}
    match _media_type(answer.content_type or ""):
        case "application/json":
            return row | {"body": orjson.loads(answer.content)}
        case "text/event-stream":
            return row | {"events": _data_lines(answer.content)}
        case _:
            return row | {"text": answer.content.decode("utf-8", "replace")}


def differences(row: dict[str, Any], answer: Answered) -> list[str]:
    """Name the differences between a recorded row and an answer; empty if they agree."""
    if row["status"] != answer.status:
        return [f"status {row['status']} != {answer.status}: {answer.content[:200]!r}"]
    if row["status"] == -1:
        return []
    wanted_type = row.get("content_type")
    found = []
    if wanted_type and _media_type(wanted_type) != _media_type(answer.content_type or ""):
        found.append(f"content type {wanted_type} != {answer.content_type}")
    if "text" in row and _words(row["text"]) != _words(answer.content.decode()):
        found.append(f"text {row['text']!r} != {answer.content.decode()!r}")
    if "body" in row:
        found += _unequal(row["body"], orjson.loads(answer.content))
    if "events" in row:
        found += _unequal_streams(row["events"], _data_lines(answer.content))
    return found


def _expanded(value: Any) -> Any:
    """Return the body with texts that the recording cut at their full length."""
    if isinstance(value, dict):
        return {name: _expanded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner) for inner in value]
    if isinstance(value, str) and (cut := _REPEATED.match(value)):
        unit = cut[2]
        return unit * (int(cut[1]) // len(unit))
    if isinstance(value, str) and (deep := _NESTED.match(value)):
        nested: dict[str, Any] = {"type": "integer"}
        for _ in range(int(deep[1])):
            nested = {"type": "object", "properties": {"a": nested}}
        return nested
    return value


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _words(text: str) -> str:
    """Return an error text without positions, numbers and a JSON parser's own words."""
    return _NUMBER.sub("0", _POSITION.sub("", _PARSER_WORDS.sub(r"\1", text)))


def _unequal(wanted: Any, given: Any) -> list[str]:
    if isinstance(wanted, dict) and isinstance(wanted.get("error"), str | dict):
        return [] if _texts(wanted) == _texts(given) else [f"error {wanted} != {given}"]
    found = [] if _shape(wanted) == _shape(given) else [f"shape {_shape(wanted)} != {_shape(given)}"]
    return found + _unequal_ends(_ends([wanted]), _ends([given]))


def _unequal_streams(wanted: list[Any], given: list[Any]) -> list[str]:
    wanted_shapes, given_shapes = _steps(wanted), _steps(given)
    found = [] if wanted_shapes == given_shapes else [f"shapes {wanted_shapes} != {given_shapes}"]
    return found + _unequal_ends(_ends(wanted), _ends(given))


def _unequal_ends(wanted: list[str], given: list[str]) -> list[str]:
    return [] if wanted == given else [f"finish reasons {wanted} != {given}"]


def _texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _texts(inner) for name, inner in value.items()}
    return _words(value) if isinstance(value, str) else value


def _shape(value: Any) -> Any:
    """Return the value's structure: names, types, and the distinct shapes in a list."""
    if isinstance(value, dict):
        if isinstance(value.get("error"), dict):
            return _texts(value)
        return {name: _shape(inner) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        shapes: list[Any] = []
        for inner in map(_shape, value):
            if inner not in shapes:
                shapes.append(inner)
        return shapes
    if isinstance(value, bool) or value is None:
        return value if value is None else "bool"
    return "number" if isinstance(value, int | float) else "text"


def _steps(events: list[Any]) -> list[Any]:
    """Return the shapes of a stream's events, repeated ones once."""
    steps: list[Any] = []
    for shape in (event if event == "[DONE]" else _shape(event) for event in events):
        if not steps or steps[-1] != shape:
            steps.append(shape)
    return steps


def _ends(bodies: list[Any]) -> list[str]:
    choices = [choice for body in bodies if isinstance(body, dict) for choice in body.get("choices") or []]
    return [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]


def _data_lines(content: bytes) -> list[Any]:
    lines = [line.removeprefix("data:").strip() for line in content.decode().splitlines() if line.startswith("data:")]
    return [line if line == "[DONE]" else orjson.loads(line) for line in lines]
