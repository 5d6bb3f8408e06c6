"""From a request's body to what is to be drawn, with every refusal that TGI has on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import orjson

from tests.stubs import tgi_body as body_of
from tests.stubs.knobs import Knobs
from tests.stubs.tgi_errors import TgiError, invalid
from tests.stubs.tgi_generation import count_tokens
from tests.stubs.tgi_grammar import Grammar, ToolCall, choose_tool, read_response_format, read_tools
from tests.stubs.tgi_schema import compile_tools
from tests.stubs.tgi_script import Script, read_script, unparsed

PIECE_TOKENS = 1024


@dataclass(slots=True)
class GenerationRequest:
    """TGI's internal request: both routes come down to it. Ranges are checked by ``check`` only."""

    conversation: bytes
    prompt_tokens: int
    model: str
    adapter: str | None
    max_new_tokens: int | None
    temperature: float | None
    do_sample: bool
    top_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    stop: list[str]
    seed: int | None
    top_n_tokens: int | None
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    details: bool = True
    return_full_text: bool = False
    best_of: int | None = None
    grammar: Grammar | None = None
    tool_call: ToolCall | None = None
    functions: list[dict[str, Any]] = field(default_factory=list)
    """The tools that one schema is made of: all, or the one that must be called."""
    inputs: str = ""
    n: int = 1
    chose_no_tool: bool = False
    script: Script | None = None


def read_chat(body: dict[str, Any], knobs: Knobs) -> GenerationRequest:
    """Read a body of /v1/chat/completions. Unknown fields, a list in logit_bias and (unasked) n are ignored.

    Raises:
        BodyError: A field has the wrong type.
        TgiError: Tools are wrong: refused before a stream begins, unlike values out of range.
    """
    if "messages" not in body:
        raise body_of.missing("messages")
    messages = body["messages"]
    if type(messages) is not list:
        raise body_of.mistyped("messages", "a sequence", messages)
    texts = [body_of.message_text(message, f"messages[{index}]") for index, message in enumerate(messages)]
    body_of.check_fields(body, body_of.CHAT_FIELDS)
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise body_of.unreadable("", "duplicate field `max_tokens`")
    get = body.get
    model = get("model")
    adapter = None if model == "tgi" else model
    presence_penalty = get("presence_penalty")
    temperature = get("temperature")
    request = GenerationRequest(
        conversation=orjson.dumps(messages),
        prompt_tokens=sum(map(count_tokens, texts)) + 4 * max(1, len(texts)),
        model=knobs.model_id if adapter is None else adapter,
        adapter=adapter,
        max_new_tokens=get("max_tokens", get("max_completion_tokens")),
        temperature=None if temperature == 0 else temperature,
        do_sample=temperature != 0,
        top_p=get("top_p"),
        repetition_penalty=None if presence_penalty is None else presence_penalty + 2.0,
        frequency_penalty=get("frequency_penalty"),
        stop=get("stop") or [],
        seed=get("seed"),
        top_n_tokens=get("top_logprobs"),
        stream=get("stream", False),
        include_usage=get("stream_options", {}).get("include_usage", False),
        logprobs=get("logprobs") or False,
        n=(get("n") or 1) if knobs.honours_n else 1,
    )
    if texts:
        request.script = read_script(texts[-1])
    if "tools" not in body and "response_format" not in body:
        return request
    request.grammar = read_response_format(body)
    tools = read_tools(body)
    if tools is not None and request.grammar is not None:
        raise TgiError("tool_error", "Tool error: Grammar and tools are mutually exclusive")
    if tools is not None:
        request.tool_call = choose_tool(tools, body.get("tool_choice"), messages, " ".join(texts), request.script)
        if not tools and request.tool_call is None:
            raise unparsed("expected value at line 1 column 1", "any text")
        if body.get("tool_choice") != "none":
            named = request.tool_call.name if isinstance(get("tool_choice"), dict) and request.tool_call else None
            request.functions = [tool for tool in tools if named in (None, tool["name"])]
        request.chose_no_tool = request.tool_call is None and body.get("tool_choice") != "none"
    return request


def read_completion(body: dict[str, Any], knobs: Knobs) -> GenerationRequest:
    """Read a body of /v1/completions: a prompt in place of messages.

    Raises:
        BodyError: A field has the wrong type.
    """
    if not isinstance(body.get("prompt"), str):
        raise body_of.missing("prompt") if "prompt" not in body else body_of.unmatched("prompt", "Prompt")
    return read_chat({**body, "messages": [{"role": "user", "content": body["prompt"]}]}, knobs)


def read_generate(body: dict[str, Any], knobs: Knobs) -> GenerationRequest:
    """Read a body of /generate or /generate_stream.

    Raises:
        BodyError: A field has the wrong type.
    """
    inputs = body.get("inputs")
    if not isinstance(inputs, str):
        raise body_of.missing("inputs") if "inputs" not in body else body_of.mistyped("inputs", "a string", inputs)
    parameters = body.get("parameters", {})
    if type(parameters) is not dict:
        raise body_of.mistyped("parameters", "struct GenerateParameters", parameters)
    body_of.check_fields(parameters, body_of.GENERATE_FIELDS)
    get = parameters.get
    return GenerationRequest(
        conversation=inputs.encode(),
        prompt_tokens=count_tokens(inputs),
        model=knobs.model_id,
        adapter=get("adapter_id"),
        max_new_tokens=get("max_new_tokens"),
        temperature=get("temperature"),
        do_sample=get("do_sample", "parameters" not in body),
        top_p=get("top_p"),
        repetition_penalty=get("repetition_penalty"),
        frequency_penalty=get("frequency_penalty"),
        stop=get("stop", []),
        seed=get("seed"),
        top_n_tokens=get("top_n_tokens"),
        details=get("details", False),
        return_full_text=get("return_full_text") or False,
        best_of=get("best_of"),
        inputs=inputs,
    )


def check(request: GenerationRequest, knobs: Knobs) -> None:
    """Check ranges, in TGI's order, and fill in what was left out: the seed and the longest answer.

    Raises:
        TgiError: A value is out of range.
    """
    best_of = 1 if request.best_of is None else request.best_of
    sampling = request.do_sample or request.temperature is not None or request.top_p is not None
    if best_of > 1 and not sampling:
        raise invalid("you must use sampling when `best_of` is > 1")
    if request.temperature is not None and request.temperature <= 0:
        raise invalid("`temperature` must be strictly positive")
    if request.repetition_penalty is not None and request.repetition_penalty <= 0:
        raise invalid("`repetition_penalty` must be strictly positive")
    if request.frequency_penalty is not None and not -2 <= request.frequency_penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if request.top_p is not None and not 0 < request.top_p < 1:
        raise invalid("`top_p` must be > 0.0 and < 1.0")
    if request.max_new_tokens == 0:
        raise invalid("`max_new_tokens` must be strictly positive")
    if len(request.stop) > knobs.max_stop_sequences:
        given, most = len(request.stop), knobs.max_stop_sequences
        raise invalid(f"`stop` supports up to {most} stop sequences. Given: {given}")
    if best_of > 1 and request.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1")
    if not 0 < best_of <= knobs.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {knobs.max_best_of}. Given: {best_of}")
    if request.top_n_tokens is not None and request.top_n_tokens > knobs.max_top_n_tokens:
        given, most = request.top_n_tokens, knobs.max_top_n_tokens
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {most}. Given: {given}")
    _check_length(request, knobs)
    if request.grammar is not None:
        request.grammar.check()
    if request.functions:
        compile_tools(request.functions)
    if request.seed is None:
        request.seed = random.getrandbits(64)


def _check_length(request: GenerationRequest, knobs: Knobs) -> None:
    """Hold prompt and answer against the limits, and set how long the answer may become.

    Only the first piece of an answer is held against the limit: longer ones are drawn ``PIECE_TOKENS`` at a time, where
    max_tokens was given only while another whole piece fits.
    """
    if not request.prompt_tokens:
        raise invalid("`inputs` cannot be empty")
    room = knobs.max_total_tokens - request.prompt_tokens
    asked = request.max_new_tokens
    if min(asked or 0, PIECE_TOKENS) > room or (asked is None and room <= 0):
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {knobs.max_total_tokens}. "
            f"Given: {request.prompt_tokens} `inputs` tokens and {asked or 0} `max_new_tokens`"
        )
    if request.prompt_tokens > knobs.max_input_tokens:
        raise invalid(f"`inputs` must have less than {knobs.max_input_tokens} tokens. Given: {request.prompt_tokens}")
    request.max_new_tokens = room if asked is None else min(asked, max(1, room // PIECE_TOKENS) * PIECE_TOKENS)
