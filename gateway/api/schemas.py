"""OpenAI's chat completions on the wire: the bodies of requests and responses.

Every field of the current chat schema is here. Types are strict and unknown fields are refused, so that a misspelt
field is an error and not ignored. Null fields and fields that only answers have are dropped. A valid field that cannot
be served is refused by name, in ``gateway.api.translate``.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.types import ArmName, FinishReason

Finite = Annotated[float, Field(allow_inf_nan=False)]


def _without_point(value: object) -> object:
    """Return ``4.0`` as an int: JSON has no other difference between the two."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = BeforeValidator(_without_point)
Count = Annotated[int, Field(ge=1), Whole]
Tokens = Annotated[int, Field(ge=1, le=10_000_000), Whole]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), Whole]


def _checked_json(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse numbers that our parser accepts and other JSON readers do not: backends get the value unchanged."""
    if not _is_json(value):
        raise PydanticCustomError("json_number", "Numbers should be finite, and whole ones have at most 64 bits")
    return value


def _is_json(value: object) -> bool:
    match value:
        case float():
            return math.isfinite(value)
        case int():
            return -(2**63) <= value < 2**64
        case dict():
            return all(map(_is_json, value.values()))
        case list():
            return all(map(_is_json, value))
    return True


AnyJson = Annotated[dict[str, Any], AfterValidator(_checked_json)]


class _Wire(BaseModel):
    """An object in which unknown fields are refused unless they are null or in ``dropped``."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})
    dropped: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _refuse_unknown(self) -> Self:
        if extra := self.__pydantic_extra__:
            for name, value in extra.items():
                if value is not None and name not in self.dropped:
                    raise PydanticCustomError("unknown_field", "unknown field", {"field": name})
            extra.clear()
        return self


class _Open(BaseModel):
    """An object with any fields: it is accepted here to be refused by name later."""

    model_config = ConfigDict(extra="allow", strict=True)


class ContentPart(_Open):
    """One part of a message's content. Only text is served, and an assistant's refusal."""

    type: str
    text: str | None = None
    refusal: str | None = None


# Lists fail fast: a body full of mistakes would otherwise block the event loop for seconds.
Content = str | Annotated[list[ContentPart], Field(fail_fast=True)]


class FunctionCall(_Wire):
    """The function of a tool call, its arguments as JSON text."""

    dropped = frozenset({"parsed_arguments"})  # added by openai-python's ``parse`` and ``stream``
    name: str = Field(min_length=1, max_length=128)
    arguments: str


class ToolCall(_Wire):
    """A tool call in an assistant's message."""

    dropped = frozenset({"index"})  # present in a call that was assembled from a stream
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(_Wire):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(_Wire):
    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(_Wire):
    """The model's turn. Other fields of an answer may be sent back too; reasoning is not shown to the model again."""

    dropped = frozenset({"annotations", "parsed", "reasoning", "reasoning_content", "reasoning_details"})
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    refusal: str | None = None
    # Refused by name unless they are empty.
    audio: dict[str, Any] | None = None
    function_call: dict[str, Any] | None = None


class ToolMessage(_Wire):
    """A tool's result; ``name`` is the tool's, for templates that use it."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


ChatMessage = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(_Wire):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: AnyJson | None = None
    strict: bool | None = None


class Tool(_Wire):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(_Wire):
    """Names the function that must be called."""

    name: str = Field(min_length=1)


class NamedTool(_Wire):
    """Names the tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Wire):
    """A named JSON schema that the answer must follow."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: AnyJson | None = Field(default=None, alias="schema")
    strict: bool | None = None


class PlainFormat(_Wire):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(_Wire):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(_Wire):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


# At each place where a stop string may begin, the answer's end is compared with it: a long one would take minutes.
StopString = Annotated[str, Field(min_length=1, max_length=1_000)]


class ChatCompletionRequest(_Wire):
    """Body of ``POST /v1/chat/completions``."""

    model: str = Field(min_length=1, max_length=256)
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    best_of: Count | None = Field(default=None, description="N: how many candidates are drawn and scored.")
    n: Count | None = Field(default=None, description="How many of the best answers are returned.")

    temperature: Finite | None = Field(default=None, ge=0, le=2)
    top_p: Finite | None = Field(default=None, ge=0, le=1)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    stop: StopString | Annotated[list[StopString], Field(fail_fast=True)] | None = None
    seed: Seed | None = None
    frequency_penalty: Finite | None = Field(default=None, ge=-2, le=2)
    presence_penalty: Finite | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[Finite, Field(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = None
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=512)
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )
    store: bool | None = Field(default=None, description="false keeps all content out of the journal.")

    # Hints to OpenAI's own service that change no answer: any value is accepted and ignored.
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None

    # Accepted with a value that changes nothing; any other value is refused by name.
    audio: dict[str, Any] | None = None
    function_call: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = Field(default=None, fail_fast=True)
    modalities: list[str] | None = Field(default=None, fail_fast=True)
    moderation: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    service_tier: str | None = None
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None


class FeedbackRequest(_Wire):
    """Body of ``POST /v1/feedback``."""

    id: str = Field(pattern=r"^chatcmpl-[0-9a-f]{32}$", description="The id of the completion that is rated.")
    rating: Finite = Field(ge=-1, le=1, description="-1 is bad, 1 is good.")
    comment: str | None = Field(default=None, max_length=10_000)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """Every error, in OpenAI's envelope."""

    error: ErrorDetail


class FeedbackResponse(BaseModel):
    id: str
    object: Literal["feedback"] = "feedback"
    recorded: bool


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class PartReport(BaseModel):
    """The readiness of one part. ``limits``: the candidates that each of its servers says it takes at once."""

    ready: bool
    detail: str
    limits: dict[str, dict[str, int]] | None = None


class ReadyResponse(BaseModel):
    """The readiness of this gateway, and of each of its parts."""

    status: Literal["ready", "degraded", "not ready"]
    parts: dict[str, PartReport]


class StageTimings(BaseModel):
    """A request's time by stage, in milliseconds; see ``gateway.types.Timings``."""

    queue_ms: float
    generate_ms: float
    score_ms: float
    journal_ms: float
    overhead_ms: float
    total_ms: float


class BestOfNReport(BaseModel):
    """The race behind an answer: an extension of OpenAI's schema."""

    n: int = Field(description="Candidates that were drawn.")
    n_asked: int = Field(description="Candidates that caller or policy wanted; more than n under overload.")
    scored: int = Field(description="Candidates with a reward.")
    selection: Literal["scored", "fallback", "single"]
    rewards: list[float | None] = Field(description="Rewards in the order of the candidates.")
    scoring_error: str | None = Field(
        description="Why rewards are missing; RewardUnavailable: none could be had, so n is the answers wanted."
    )
    unusable: list[str | None] = Field(
        description="Why an answer cannot be used, in the order of the candidates; null where it can."
    )
    winners: list[int] = Field(description="Indexes of the returned candidates, best first.")
    shortfall: str | None = Field(description="Why fewer answers than n are returned; null where none is missing.")
    generated_tokens: int
    policy: int = Field(description="Version of the policy that decided the race.")
    adapter: str | None
    arm: ArmName = Field(description="The policy's arm that answered.")
    arm_failed: ArmName | None = Field(description="The arm that should have answered and could not.")
    reward_model: str | None
    exploration: bool
    deadline_hit: bool
    timings: StageTimings


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason


class Usage(BaseModel):
    """Tokens of the prompt and the returned answers; ``best_of_n.generated_tokens`` counts all that were drawn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """Body of the answer of ``POST /v1/chat/completions`` that is not streamed."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    best_of_n: BestOfNReport
