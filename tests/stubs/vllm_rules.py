"""The refusals of vLLM 0.33, in its words; ``recorded/vllm.jsonl`` compares them with the real front end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VOCABULARY = 49_152


@dataclass(frozen=True, slots=True)
class Refusal(Exception):
    """An error answer of vLLM: ``{"error": {"message", "type", "param", "code"}}``."""

    status: int
    kind: str
    message: str
    param: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


def check_types(body: Any) -> None:
    """Refuse a body of the wrong shape, before anything else is looked at.

    Raises:
        Refusal: pydantic's errors, of which only the first field's name is worth comparing.
    """
    if not isinstance(body, dict):
        raise _mistyped("body")
    if "messages" not in body:
        raise _mistyped("body.messages")
    for index, message in enumerate(body["messages"]):
        where = f"body.messages.{index}.ChatCompletionDeveloperMessageParam"
        if "role" not in message:
            raise _mistyped(f"{where}.role", plural=True)
        if not isinstance(message.get("content"), str | list | None):
            raise _mistyped(f"{where}.content", plural=True)
    if not isinstance(body.get("seed"), int | None):
        raise _mistyped("body.seed")
    form = body.get("response_format")
    if form is not None and form.get("type") not in {"text", "json_object", "json_schema"}:
        raise _mistyped("body.response_format.type", plural=True)
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice["function"]["name"] not in _tool_names(body):
        words = "The tool specified in `tool_choice` does not match any of the specified `tools`"
        raise Refusal(400, "BadRequestError", f"{words} (parameter=tool_choice)", "tool_choice")


def check_values(body: dict[str, Any], *, has_tool_parser: bool, max_model_len: int, prompt_tokens: int) -> None:
    """Refuse values out of range.

    Raises:
        Refusal: Names the field where there is one.
    """
    get = body.get
    if not body["messages"]:
        raise _bad("Cannot apply chat template to an empty conversation. Provide at least one message.")
    if get("tools") and not has_tool_parser:
        if get("tool_choice") == "required":
            raise _bad('tool_choice="required" requires --tool-call-parser to be set')
        raise _bad('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
    if (temperature := get("temperature")) is not None and not 0 <= temperature <= 2:
        given = float(temperature)
        words = f"be non-negative, got {given}." if given < 0 else f"be in [0, 2], got {given}."
        raise _bad(f"temperature must {words} (parameter=temperature, value={given})", "temperature")
    if (top_p := get("top_p")) is not None and not 0 < top_p <= 1:
        given = float(top_p)
        raise _bad(f"top_p must be in (0, 1], got {given}. (parameter=top_p, value={given})", "top_p")
    _check_lengths(get("max_tokens"), max_model_len, prompt_tokens)
    outside = [int(token) for token in get("logit_bias") or {} if not 0 <= int(token) < VOCABULARY]
    if outside:
        size = f"Vocabulary size: {VOCABULARY} (parameter=logit_bias, value={outside})"
        raise _bad(f"token_id(s) {outside} in logit_bias contain out-of-vocab token ids. {size}", "logit_bias")
    schema = ((get("response_format") or {}).get("json_schema") or {}).get("schema") or {}
    if str(schema.get("$ref", "")).startswith("#/nowhere"):
        raise _bad("Grammar error: Pointer '/nowhere' does not exist")


def too_long(max_model_len: int) -> Refusal:
    """Return the refusal of a prompt that does not fit."""
    at_least = max_model_len + 1
    return _bad(
        f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least "
        f"{at_least} input tokens, which exceeds this limit even without any output tokens. Please reduce the length "
        f"of the input prompt. (parameter=input_tokens, value={at_least})",
        "input_tokens",
    )


def _check_lengths(max_tokens: int | None, max_model_len: int, prompt_tokens: int) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise _bad(
            f"max_tokens must be at least 1, got {max_tokens}. (parameter=max_tokens, value={max_tokens})", "max_tokens"
        )
    if max_tokens is not None and max_tokens > max_model_len:
        raise _bad(
            f"max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. Please request fewer "
            f"output tokens. (parameter=max_tokens, value={max_tokens})",
            "max_tokens",
        )
    if prompt_tokens > max_model_len:
        raise too_long(max_model_len)


def _bad(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, "BadRequestError", message, param)


def _mistyped(where: str, *, plural: bool = False) -> Refusal:
    count = "2 validation errors" if plural else "1 validation error"
    return Refusal(400, "Bad Request", f"{count}:\n  {{'loc': '{where}'}}", where)


def _tool_names(body: dict[str, Any]) -> list[str]:
    return [tool["function"]["name"] for tool in body.get("tools") or []]
