"""Response formats and tools: what TGI accepts, and text that obeys them."""

from __future__ import annotations

import hashlib
import re
import re._parser as regex_parser  # type: ignore[import-not-found]
from dataclasses import dataclass
from typing import Any

import orjson

from tests.stubs import tgi_body as body_of
from tests.stubs.tgi_errors import TgiError, invalid
from tests.stubs.tgi_generation import split
from tests.stubs.tgi_schema import compile_schema
from tests.stubs.tgi_script import Script

SAID = ("wheel", "ratchet", "lantern", "harbour", "spring", "copper", "meadow", "compass")


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on the answer: a JSON schema, or a regular expression."""

    schema: Any = None
    regex: str | None = None

    def check(self) -> None:
        """Refuse what TGI cannot compile.

        Raises:
            TgiError: The schema is none, or one that its compiler does not know.
            StackOverflow: The schema ends the process.
        """
        if self.regex is not None:
            return  # the router passes it on as it is
        if not isinstance(self.schema, dict):
            raise invalid("grammar is not supported")
        compile_schema(self.schema)

    def obey(self, key: bytes) -> str:
        """A text that matches, chosen by ``key``."""
        choice = _Choice(key)
        if self.regex is not None:
            try:
                parsed = regex_parser.parse(self.regex)
            except re.error as error:
                # The router takes any expression; the model server fails when it compiles this one.
                raise TgiError("generation", f"Request failed during generation: Server error: {error}") from error
            return "".join(_matching(parsed, choice))
        return orjson.dumps(_instance(self.schema, choice)).decode()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The tool that the model calls, and the id its call gets."""

    id: str
    name: str
    parameters: Any
    scripted: str | None = None
    """The arguments that a script gives."""

    def arguments(self, key: bytes) -> str:
        """Arguments that fit the tool's parameters, as the JSON text that TGI sends."""
        if self.scripted is not None:
            return self.scripted
        schema = self.parameters if isinstance(self.parameters, dict) else {}
        return orjson.dumps(_instance({**schema, "type": "object"}, _Choice(key))).decode()

    def pieces(self, arguments: str) -> tuple[list[str], list[str]]:
        """Return the pieces that the model writes up to the tool's name, and those of the arguments after it."""
        comma = "" if arguments == "{}" else ","
        width = 6 if self.scripted is None else 3  # as many pieces as the recorded tokenizer makes of it
        name = split(f'{{"function":{{"_name":{orjson.dumps(self.name).decode()}{comma}', width)
        return name, [*split(arguments[1:-1], width), "}}"]


def read_response_format(body: dict[str, Any]) -> Grammar | None:
    """The response format: ``{"type", "value"}``. OpenAI's shapes, without a value, are refused.

    Raises:
        BodyError: Another shape.
    """
    given = body.get("response_format")
    if given is None:
        return None
    if type(given) is not dict:
        raise body_of.mistyped("response_format", "adjacently tagged enum GrammarType", given)
    if "type" not in given:
        raise body_of.missing("type", "response_format")
    kind = given["type"]
    if kind not in {"json", "json_object", "json_schema", "regex"}:
        raise body_of.unreadable(
            "response_format.type",
            f"unknown variant `{kind}`, expected one of `json`, `json_object`, `regex`, `json_schema`",
        )
    if "value" not in given:
        raise body_of.missing("value", "response_format")
    value = given["value"]
    if kind == "regex":
        if not body_of.is_text(value):
            raise body_of.mistyped("response_format.value", "a string", value)
        return Grammar(regex=value)
    if kind == "json_schema":
        if type(value) is not dict or "schema" not in value:
            raise body_of.missing("schema", "response_format.value")
        return Grammar(schema=value["schema"])
    if type(value) is str:
        try:
            return Grammar(schema=orjson.loads(value))
        except orjson.JSONDecodeError:
            return Grammar(schema=None)
    return Grammar(schema=value)


def read_tools(body: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The functions of the tools, or None where there is no such field.

    Raises:
        BodyError: A tool is not one.
    """
    tools = body.get("tools")
    if tools is None:
        return None
    if type(tools) is not list:
        raise body_of.mistyped("tools", "a sequence", tools)
    for index, tool in enumerate(tools):
        if type(tool) is not dict or not body_of.is_text(tool.get("type")):
            raise body_of.missing("type", f"tools[{index}]")
        if not body_of.is_function(tool.get("function")):
            raise body_of.missing("arguments", f"tools[{index}].function")
    return [tool["function"] for tool in tools]


def choose_tool(
    functions: list[dict[str, Any]], tool_choice: Any, messages: list[Any], text: str, script: Script | None = None
) -> ToolCall | None:
    """The tool that the model calls, if it calls one.

    ``auto`` (also null and absent) calls the first tool whose name the conversation mentions; ``required`` falls back
    to the first of all; any other string is a tool's name.

    Raises:
        BodyError: ``tool_choice`` has another shape.
        TgiError: It names a tool that is not there.
    """
    mentioned = next((function for function in functions if function["name"] in text), None)
    match tool_choice:
        case None | "auto":
            chosen = mentioned
        case "none":
            chosen = None
        case "required":
            chosen = mentioned or next(iter(functions), None)
        case str(name) | {"type": "function", "function": {"name": str(name)}}:
            chosen = next((function for function in functions if function["name"] == name), None)
            if chosen is None:
                raise TgiError("tool_error", f"Tool error: Tool with name {name} not found")
        case _:
            raise body_of.unmatched("tool_choice", "ToolTypeDeserializer")
    if script is not None and tool_choice != "none":
        call = script.call()
        return None if call is None else ToolCall(_next_id(messages), call[0], None, scripted=call[1])
    if chosen is None:
        return None
    parameters = chosen.get("parameters", chosen.get("arguments"))
    return ToolCall(id=_next_id(messages), name=chosen["name"], parameters=parameters)


def _next_id(messages: list[Any]) -> str:
    """One more than the largest id of the calls so far; TGI counts them from 0."""
    called = [message for message in messages if message.get("content") is None]
    calls = [call for message in called for call in message["tool_calls"]]
    numbers = [int(call["id"]) for call in calls if call["id"].isdigit()]
    if len(numbers) < len(calls):
        return hashlib.blake2b(orjson.dumps(messages), digest_size=16).hexdigest()
    return str(max(numbers, default=-1) + 1)


class _Choice:
    """An endless row of choices that follow from a key."""

    def __init__(self, key: bytes) -> None:
        self._left = int.from_bytes(hashlib.blake2b(key, digest_size=64).digest(), "little")

    def below(self, count: int) -> int:
        self._left, chosen = divmod(self._left or 12345, max(1, count))
        return chosen


def _instance(schema: Any, choice: _Choice) -> Any:
    """A value that fits the plain parts of a JSON schema."""
    if not isinstance(schema, dict):
        return None
    for keyword in ("anyOf", "oneOf"):
        if schema.get(keyword) and "properties" not in schema:
            return _instance(schema[keyword][choice.below(len(schema[keyword]))], choice)
    if "prefixItems" in schema:
        return [_instance(place, choice) for place in schema["prefixItems"]]
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][choice.below(len(schema["enum"]))]
    match schema.get("type", "object" if "properties" in schema else "string"):
        case "object":
            return {name: _instance(inner, choice) for name, inner in schema.get("properties", {}).items()}
        case "array":
            least, most = schema.get("minItems", 0), schema.get("maxItems", 100)
            count = max(least, min(most, 1 + choice.below(2)))
            return [_instance(schema.get("items", {}), choice) for _ in range(count)]
        case "integer":
            return choice.below(100)
        case "number":
            return choice.below(1000) / 10
        case "boolean":
            return choice.below(2) == 1
        case "null":
            return None
        case _:
            return _text(schema, choice)


def _text(schema: dict[str, Any], choice: _Choice) -> str:
    """A string: the compiler looks at the length first, then at the pattern, then at the format."""
    if "minLength" in schema or "maxLength" in schema:
        least = schema.get("minLength", 0)
        return str("a" * least + SAID[choice.below(len(SAID))])[: max(least, schema.get("maxLength", 100))]
    if "pattern" in schema:
        return "".join(_matching(regex_parser.parse(schema["pattern"]), choice))
    moment = {"date-time": "2026-01-02T03:04:05Z", "date": "2026-01-02", "time": "03:04:05"}
    moment["uuid"] = "0b2a4a1e-6c1d-4d4e-9d5a-1f2e3d4c5b6a"
    return moment.get(schema.get("format", ""), SAID[choice.below(len(SAID))])


def _matching(parsed: Any, choice: _Choice) -> list[str]:
    """Parts of a text that matches a parsed regular expression; anchors and look-arounds match nothing."""
    parts: list[str] = []
    for operation, argument in parsed:
        match str(operation):
            case "LITERAL":
                parts.append(chr(argument))
            case "ANY" | "NOT_LITERAL" | "CATEGORY":
                parts.append("x")
            case "IN":
                parts.append(_member(argument, choice))
            case "BRANCH":
                parts += _matching(argument[1][choice.below(len(argument[1]))], choice)
            case "SUBPATTERN":
                parts += _matching(argument[-1], choice)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, inner = argument
                for _ in range(least + choice.below(min(int(most), least + 3) - least + 1)):
                    parts += _matching(inner, choice)
    return parts


def _member(items: Any, choice: _Choice) -> str:
    if str(items[0][0]) == "NEGATE":
        return "x"
    operation, argument = items[choice.below(len(items))]
    match str(operation):
        case "LITERAL":
            return chr(argument)
        case "RANGE":
            return chr(argument[0] + choice.below(argument[1] - argument[0] + 1))
        case "CATEGORY":
            return {"CATEGORY_DIGIT": "7", "CATEGORY_SPACE": " "}.get(str(argument), "w")
        case _:
            return "x"
