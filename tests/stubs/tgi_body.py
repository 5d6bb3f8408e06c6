"""Read request bodies as TGI's deserialiser does: types first, ranges later (tgi_validation)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from tests.stubs.tgi_errors import BodyError

U32 = 2**32 - 1
U64 = 2**64 - 1
MAX_NESTING = 127


def parse(raw: bytes, content_type: str) -> dict[str, Any]:
    """Return the JSON object in ``raw``.

    Raises:
        BodyError: 415 for another content type, 400 for a syntax error, 422 for anything but an object.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise BodyError(415, "Expected request with `Content-Type: application/json`")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise syntax_error(str(error)) from error
    if isinstance(body, list):
        # A struct may be written as a sequence of its fields, of which the first is the model's name.
        raise mistyped("[0]", "a string", body[0] if body else None)
    if not isinstance(body, dict):
        raise mistyped("", "struct ChatRequest", body)
    if nesting(body) > MAX_NESTING:
        raise syntax_error("recursion limit exceeded")
    return body


def syntax_error(reason: str) -> BodyError:
    """Return the error for a body that is no JSON; the words after the colon are the parser's."""
    return BodyError(400, f"Failed to parse the request body as JSON: {reason}")


def nesting(value: Any) -> int:
    """Return how many objects and lists lie within one another at the deepest place."""
    level, inner = 0, [value]
    while inner := [one for one in inner if isinstance(one, dict | list)]:
        level += 1
        inner = [deeper for one in inner for deeper in (one.values() if isinstance(one, dict) else one)]
    return level


def mistyped(path: str, wanted: str, given: Any) -> BodyError:
    """Return the error for a field whose value has the wrong type, or is a number out of its range."""
    fault = "value" if wanted in {"u32", "u64"} and type(given) is int else "type"
    return unreadable(path, f"invalid {fault}: {_described(given)}, expected {wanted}")


def missing(name: str, path: str = "") -> BodyError:
    """Return the error for a field that must be there and is not."""
    return unreadable(path, f"missing field `{name}`")


def unmatched(path: str, enum: str) -> BodyError:
    """Return the error for a value that has none of the shapes it may have."""
    return unreadable(path, f"data did not match any variant of untagged enum {enum}")


def unreadable(path: str, reason: str) -> BodyError:
    """Return the error for a body of another type than the route's, without the position that TGI adds."""
    where = f"{path}: " if path else ""
    return BodyError(422, f"Failed to deserialize the JSON body into the target type: {where}{reason}")


def _described(value: Any) -> str:
    """Return a value as serde names it."""
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {orjson.dumps(value).decode()}"
        case list():
            return "sequence"
        case _:
            return "map"


@dataclass(frozen=True, slots=True)
class Field:
    """The type of a field. Null means "absent", unless the field forbids it."""

    right: Callable[[Any], bool]
    wanted: str
    nullable: bool = True


def check_fields(body: dict[str, Any], fields: dict[str, Field]) -> None:
    """Check the types of the fields that are there; unknown ones are ignored.

    Raises:
        BodyError: One has the wrong type.
    """
    for name, value in body.items():
        field = fields.get(name)
        if field is None or (value is None and field.nullable):
            continue
        if not field.right(value):
            raise mistyped(name, field.wanted, value)


def is_float(value: Any) -> bool:
    return type(value) is float or type(value) is int


def is_u32(value: Any) -> bool:
    """Return whether ``value`` reads as u32: 5.0 does not."""
    return type(value) is int and 0 <= value <= U32


def is_u64(value: Any) -> bool:
    return type(value) is int and 0 <= value <= U64


def is_bool(value: Any) -> bool:
    return type(value) is bool


def is_text(value: Any) -> bool:
    return type(value) is str


def is_texts(value: Any) -> bool:
    """Return whether ``value`` is a list of strings: one string alone is not."""
    return type(value) is list and all(type(item) is str for item in value)


def is_floats(value: Any) -> bool:
    return type(value) is list and all(map(is_float, value))


def is_stream_options(value: Any) -> bool:
    return type(value) is dict and is_bool(value.get("include_usage", False))


FLOAT = Field(is_float, "f32")
U32_FIELD = Field(is_u32, "u32")
U64_FIELD = Field(is_u64, "u64")
TEXT = Field(is_text, "a string")
FLAG = Field(is_bool, "a boolean")
FLAG_NEVER_NULL = Field(is_bool, "a boolean", nullable=False)

CHAT_FIELDS = {
    "model": TEXT,
    "frequency_penalty": FLOAT,
    "logit_bias": Field(is_floats, "a sequence"),
    "logprobs": FLAG,
    "top_logprobs": U32_FIELD,
    "max_tokens": U32_FIELD,
    "max_completion_tokens": U32_FIELD,
    "n": U32_FIELD,
    "presence_penalty": FLOAT,
    "stop": Field(is_texts, "a sequence"),
    "stream": FLAG_NEVER_NULL,
    "seed": U64_FIELD,
    "temperature": FLOAT,
    "top_p": FLOAT,
    "tool_prompt": TEXT,
    "stream_options": Field(is_stream_options, "struct StreamOptions", nullable=False),
}

GENERATE_FIELDS = {
    "best_of": U32_FIELD,
    "temperature": FLOAT,
    "repetition_penalty": FLOAT,
    "frequency_penalty": FLOAT,
    "top_p": FLOAT,
    "do_sample": FLAG_NEVER_NULL,
    "max_new_tokens": U32_FIELD,
    "return_full_text": FLAG,
    "stop": Field(is_texts, "a sequence", nullable=False),
    "details": FLAG_NEVER_NULL,
    "seed": U64_FIELD,
    "top_n_tokens": U32_FIELD,
    "adapter_id": TEXT,
}


def message_text(message: Any, path: str) -> str:
    """Return the text of one chat message: its content, or else its tool calls."""
    if type(message) is not dict:
        raise mistyped(path, "struct Message", message)
    if "role" not in message:
        raise missing("role", path)
    for name in ("role", "name"):
        if not isinstance(message.get(name), str | None):
            raise mistyped(f"{path}.{name}", "a string", message[name])
    content = message.get("content")
    if type(content) is str:
        return content
    if type(content) is list and all(map(_is_chunk, content)):
        return "".join(
            chunk["text"] if chunk["type"] == "text" else f"![]({chunk['image_url']['url']})" for chunk in content
        )
    calls = message.get("tool_calls")
    if type(calls) is list and all(map(_is_tool_call, calls)):
        return orjson.dumps(calls).decode()
    raise unmatched(path, "MessageBody")


def _is_chunk(chunk: Any) -> bool:
    if type(chunk) is not dict:
        return False
    if chunk.get("type") == "text":
        return is_text(chunk.get("text"))
    url = chunk.get("image_url")
    return chunk.get("type") == "image_url" and type(url) is dict and is_text(url.get("url"))


def _is_tool_call(call: Any) -> bool:
    if type(call) is not dict or not is_text(call.get("id")) or not is_text(call.get("type")):
        return False
    return is_function(call.get("function"))


def is_function(function: Any) -> bool:
    """Return whether ``function`` has a name, and arguments or parameters (a tool without them is refused)."""
    if type(function) is not dict or not is_text(function.get("name")):
        return False
    description = function.get("description")
    return ("arguments" in function) != ("parameters" in function) and (description is None or is_text(description))
