"""Translate a chat request into the gateway's own terms; refuse by name each field that cannot be served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.api.schemas import (
    AssistantMessage,
    ChatCompletionRequest,
    ChatMessage,
    Content,
    ContentPart,
    NamedTool,
    PlainFormat,
    SchemaFormat,
    Tool,
    ToolMessage,
)
from gateway.errors import InvalidRequest, ModelNotFound, UnsupportedField
from gateway.settings import ApiSettings
from gateway.types import AnswerRequest, JsonObject, Message, Sampling

MAX_STOPS = 4
"""OpenAI's limit, which is TGI's too."""

# Fields that this gateway cannot serve, with the values that change nothing.
NEUTRAL: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_HUB_DEFAULT_MODEL = "dummy"
"""The model that huggingface_hub's client names if its caller names none: any model will do."""

_INSTEAD = {"function_call": "; use tool_choice", "functions": "; use tools"}


def translate(
    body: ChatCompletionRequest, *, best_of_header: str | None, api: ApiSettings, best_of_max: int
) -> AnswerRequest:
    """Translate a request into the gateway's own terms.

    Raises:
        ModelNotFound: The model is not served here.
        UnsupportedField: A valid field asks for something that this gateway does not do.
        InvalidRequest: A value is out of range, or two contradict each other.
    """
    if body.model not in api.models and body.model != _HUB_DEFAULT_MODEL:
        raise ModelNotFound(f"the model {_quoted(body.model)} does not exist here; GET /v1/models lists what does")
    if len(body.messages) > api.max_messages:
        raise InvalidRequest(
            f"{len(body.messages)} messages are over this server's limit of {api.max_messages}", param="messages"
        )
    for field, neutral in NEUTRAL.items():
        value = getattr(body, field)
        if value is not None and value not in neutral:
            raise UnsupportedField(f"{field} is not supported here{_INSTEAD.get(field, '')}", param=field)
    sampling = _sampling(body)
    best_of = _best_of(body, best_of_header, best_of_max)
    n = body.n if body.n is not None else 1
    if n > (best_of if best_of is not None else best_of_max):
        bound = "best_of" if best_of is not None else f"the largest best_of here, {best_of_max}"
        raise InvalidRequest(f"n must not be larger than {bound}", param="n")
    return AnswerRequest(
        model=body.model,
        messages=_messages(body.messages),
        sampling=sampling,
        best_of=best_of,
        n_returned=n,
        store=body.store is not False,
        user=body.user,
        metadata=body.metadata,
    )


def _best_of(body: ChatCompletionRequest, header: str | None, best_of_max: int) -> int | None:
    """Return N as the caller asks for it: the header before the body, each within the configured maximum."""
    by_header = None
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) <= 6):
            raise InvalidRequest("X-Best-Of must be a whole number", param="X-Best-Of")
        by_header = int(header)
    for name, best_of in (("X-Best-Of", by_header), ("best_of", body.best_of)):
        if best_of is not None and not 1 <= best_of <= best_of_max:
            raise InvalidRequest(f"{name} must be between 1 and {best_of_max}", param=name)
    return body.best_of if by_header is None else by_header


def _sampling(body: ChatCompletionRequest) -> Sampling:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stop) > MAX_STOPS:
        raise InvalidRequest(f"stop takes at most {MAX_STOPS} strings", param="stop")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequest("max_tokens and max_completion_tokens contradict each other", param="max_tokens")
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    choice = body.tool_choice
    if not body.tools and choice not in (None, "none") and (body.tools is None or choice != "auto"):
        raise InvalidRequest("tool_choice needs tools", param="tool_choice")
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens,
        stop=tuple(stop),
        seed=body.seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs,
        tools=tuple(_tool(tool) for tool in body.tools or ()),
        tool_choice=(choice.model_dump() if isinstance(choice, NamedTool) else choice) if body.tools else None,
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body.response_format),
    )


def _response_format(wanted: PlainFormat | SchemaFormat | None) -> JsonObject | None:
    """Return the format for the backend: none for free text, any JSON object if there is no schema."""
    if wanted is None or wanted.type == "text":
        return None
    if isinstance(wanted, SchemaFormat) and wanted.json_schema.schema_ is None:
        return {"type": "json_object"}
    return wanted.model_dump(by_alias=True, exclude_none=True)


def _tool(tool: Tool) -> JsonObject:
    """Return the tool for the backend. OpenAI allows a tool without ``parameters``; TGI needs an empty schema."""
    definition = tool.model_dump(exclude_none=True)
    definition["function"].setdefault("parameters", {"type": "object", "properties": {}})
    return definition


def _messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the conversation, in which the model's turn is next.

    Raises:
        UnsupportedField: The last message is the assistant's. Servers disagree about it: vLLM begins another turn,
            TGI and llama.cpp continue the message, with or without repeating it, SGLang takes it as the user's.
    """
    if isinstance(messages[-1], AssistantMessage):
        raise UnsupportedField(
            "messages[-1]: the last message must not be the assistant's; answers are not continued here",
            param="messages[-1]",
        )
    return [_message(message, index) for index, message in enumerate(messages)]


def _message(message: ChatMessage, index: int) -> Message:
    where = f"messages[{index}]"
    role = "system" if message.role == "developer" else message.role
    out: JsonObject = {"role": role, "content": _text(message.content, f"{where}.content")}
    if message.name is not None:
        out["name"] = message.name
    if isinstance(message, ToolMessage):
        out["tool_call_id"] = message.tool_call_id
    if isinstance(message, AssistantMessage):
        for field in ("audio", "function_call"):
            if getattr(message, field):
                raise UnsupportedField(f"{where}.{field} is not supported here", param=f"{where}.{field}")
        if message.tool_calls:
            out["tool_calls"] = [call.model_dump() for call in message.tool_calls]
        elif message.content is None:
            # The model refused, or its reasoning took all its tokens; every server needs a text.
            out["content"] = message.refusal or ""
    return out  # type: ignore[return-value]


def _text(content: Content | None, where: str) -> str | None:
    """Join text parts to one string, with a line break between them, as vLLM and llama.cpp do.

    vLLM: ``vllm/renderers/chat_utils/chat_message.py``; llama.cpp: ``common_chat_msgs_to_json_oaicompat`` in
    ``common/chat.cpp``; both for templates that need a string. TGI would put nothing between them. Joined here, a
    conversation is the same prompt on every server.
    """
    return content if content is None or isinstance(content, str) else "\n".join(_parts(content, where))


def _parts(content: Sequence[ContentPart], where: str) -> Iterator[str]:
    for index, part in enumerate(content):
        if part.type not in ("text", "refusal"):
            raise UnsupportedField("only text content is supported here", param=f"{where}[{index}].type")
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise InvalidRequest(f"a {part.type} part needs {part.type}", param=f"{where}[{index}].{part.type}")
        yield text


def _quoted(name: str) -> str:
    """Quote a caller's short text in an error message, safe to print."""
    return repr(name[:64])
