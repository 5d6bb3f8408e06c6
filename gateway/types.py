"""The types that rooms exchange, and the protocols between rooms. No I/O, no behaviour beyond a property."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict

from gateway.metering import Meter

if TYPE_CHECKING:
    from gateway.errors import GatewayError

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Ending = Literal["answered", "cut", "failed"]
"""The end of a request: answered; cut in mid-stream, because its caller hung up or the gateway stopped; failed in
mid-stream."""
ArmName = Literal["stable", "canary", "holdback", "base"]
"""The name of a policy variant; "base" is the base model, which serves where no server has the stable arm's adapter."""
JsonObject = dict[str, Any]


class Message(TypedDict):
    """One chat message in OpenAI's shape; text parts are already joined to one string."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None
    name: NotRequired[str]
    tool_calls: NotRequired[list[JsonObject]]
    tool_call_id: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampling of one candidate. None means that the caller set nothing: the backend's default holds.

    ``max_tokens`` is in tokens. ``seed`` is the caller's; each candidate's own seed is derived from it.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: tuple[JsonObject, ...] = ()
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    response_format: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class AnswerRequest:
    """A caller's request after validation, in the same terms whichever API it came by.

    ``model`` is the name the caller asked for; ``best_of`` is N, None where the policy chooses it; ``n_returned`` is
    the number of answers wanted; ``store`` false keeps all content out of the journal.
    """

    model: str
    messages: Sequence[Message]
    sampling: Sampling = field(default_factory=Sampling)
    best_of: int | None = None
    n_returned: int = 1
    store: bool = True
    user: str | None = None
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A call to the backend: the conversation, the sampling, and the adapter (None: the base model).

    ``meter`` counts the tokens that are drawn for it.
    """

    messages: Sequence[Message]
    sampling: Sampling
    adapter: str | None = None
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)
    lowered: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Tools and response format by kind of server, in the form it takes: lowered once for all candidates of a race."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer, in OpenAI's terms whatever the backend's own terms are.

    ``text`` is None where the server sent no content. ``reasoned``: the server also sent reasoning, which is dropped.
    An answer without text then means that the reasoning took all its tokens.
    """

    text: str | None
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tool_calls: tuple[JsonObject, ...] = ()
    logprobs: JsonObject | None = None
    reasoned: bool = False

    @property
    def scored_text(self) -> str:
        """Return the text that the reward model scores: the answer's text and its tool calls as JSON."""
        if not self.tool_calls:
            return self.text or ""
        calls = [call["function"] for call in self.tool_calls]
        return (self.text or "") + json.dumps(calls, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of a streamed answer. The last piece has ``finish_reason``, the token counts and ``reasoned``."""

    text: str = ""
    tool_calls: tuple[JsonObject, ...] = ()
    logprobs: JsonObject | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoned: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A reward (raw logit; higher is better). ``prompt_truncated``: the prompt's beginning was cut to fit the model."""

    reward: float
    prompt_truncated: bool = False


class Selection(StrEnum):
    """The reason why the winner won."""

    SCORED = "scored"  # the highest reward of at least two scored candidates
    FALLBACK = "fallback"  # several answers and too few rewards to compare them: the first answer, never training data
    SINGLE = "single"  # there was only one answer, or only one usable answer


class Unusable(StrEnum):
    """The reason why a finished answer is not what its request asked for."""

    EMPTY = "empty"  # no text and no tool call
    FILTERED = "filtered"  # the server's content filter ended it
    CUT = "length"  # max_tokens ended it
    NO_CALL = "no_tool_call"  # tool_choice asks for one
    UNWANTED_CALL = "unwanted_tool_call"  # tool_choice is none
    UNKNOWN_TOOL = "unknown_tool"  # never offered, or not the one that tool_choice names
    ARGUMENTS_NOT_JSON = "arguments_not_json"  # no JSON object
    ARGUMENTS = "arguments_break_schema"
    NOT_JSON = "not_json"
    SCHEMA = "breaks_schema"


@dataclass(slots=True)
class Candidate:
    """One drawn answer of a race, filled in as the race goes on.

    ``latency_ms`` runs from the call's start to its last token. ``cut_at_tokens`` is an upper bound of the tokens drawn
    when a stream ended before its answer did. ``unusable`` is why a finished answer cannot be used.
    """

    index: int
    seed: int
    answer: Answer | None = None
    reward: float | None = None
    prompt_truncated: bool = False
    latency_ms: float | None = None
    cut_at_tokens: int | None = None
    unusable: Unusable | None = None
    error: GatewayError | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """A request's time by stage, in milliseconds.

    ``queue`` waits for permits; ``generate`` runs from the first candidate's start to the last answer that counts;
    ``score`` is what scoring added after that; ``journal`` waits for the record to be durable; ``overhead``, the
    gateway's own work, is the rest of ``total``.
    """

    queue_ms: float = 0.0
    generate_ms: float = 0.0
    score_ms: float = 0.0
    journal_ms: float = 0.0
    total_ms: float = 0.0

    @property
    def overhead_ms(self) -> float:
        return max(0.0, self.total_ms - self.queue_ms - self.generate_ms - self.score_ms - self.journal_ms)


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy variant that serves requests.

    ``adapter`` is None for the base model; ``n`` is N; ``urls`` are its servers (empty: those of the settings).
    """

    name: ArmName
    adapter: str | None
    n: int
    urls: tuple[str, ...] = ()
    default_temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A request's race, decided before its first candidate is drawn.

    ``n_asked`` is N as the caller or the policy asked for it. A request that explores asks for the policy's n_max;
    ``n_ordinary`` is its N without exploration. ``exploration_probability`` is the policy's share of exploring
    requests, the same for requests that explore and those that do not, so that either can be weighted by it.

    ``sampling`` includes the arm's default temperature. ``n_from_caller``: the caller chose N. ``arm_failed`` should
    have served the request and could not, so ``arm`` serves it. ``score_single``: a single candidate is scored too,
    because two policies are being compared.
    """

    n_asked: int
    n_ordinary: int
    seed: int
    arm: Arm
    policy_version: int
    sampling: Sampling = field(default_factory=Sampling)
    exploration: bool = False
    exploration_probability: float = 0.0
    n_returned: int = 1
    n_from_caller: bool = False
    arm_failed: ArmName | None = None
    score_single: bool = False


@dataclass(slots=True)
class Outcome:
    """The end of a race: every candidate, the winners with the best first, and why they won."""

    plan: Plan
    n_run: int
    candidates: list[Candidate]
    winners: list[Candidate]
    selection: Selection
    timings: Timings
    deadline_hit: bool = False
    scoring_error: str | None = None
    reward_model: str | None = None
    ending: Ending = "answered"

    @property
    def rewards(self) -> list[float | None]:
        """The candidates' rewards, in their order; None for a candidate without one."""
        return [candidate.reward for candidate in self.candidates]

    @property
    def n_scored(self) -> int:
        return sum(candidate.reward is not None for candidate in self.candidates)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, counted once, as the server of a finished candidate counted them."""
        return next((c.answer.prompt_tokens for c in self.candidates if c.answer is not None), 0)

    @property
    def generated_tokens(self) -> int:
        """Tokens of every finished candidate, returned or not, and of a stream that was cut."""
        return sum(c.cut_at_tokens or 0 if c.answer is None else c.answer.completion_tokens for c in self.candidates)


@dataclass(frozen=True, slots=True)
class Readiness:
    """A part's readiness to serve, and in words why it is not ready or not well."""

    ready: bool
    detail: str = ""
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """A server as a pool sees it. ``fault``: the kind of failure for which it is ejected; None while it is not."""

    name: str
    fault: str | None
    lacks_adapter: bool


class Backend(Protocol):
    """The servers that draw a race's candidates. Implementations raise only errors of ``gateway.errors``."""

    def choose_replica(self) -> Any:
        """Return a new race's route. All its candidates go to one replica, whose prefix cache they share."""
        ...

    async def complete(self, prompt: Prompt, *, seed: int, replica: Any) -> Answer:
        """Draw one whole answer. Cancelling the call closes its connection, which stops generation."""
        ...

    def stream(self, prompt: Prompt, *, seed: int, replica: Any) -> AsyncGenerator[Delta]:
        """Draw one answer piece by piece. Closing the iterator closes the connection."""
        ...


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Cost of one batch, for metrics. ``wait_ms`` is the oldest entry's, ``waiting`` the entries left in the queue."""

    entries: int
    tokens: int
    padded_tokens: int
    wait_ms: float
    run_ms: float
    waiting: int
    failed: bool


class Scorer(Protocol):
    """Scores answers. Implementations raise only ``RewardError`` and its subclasses."""

    @property
    def name(self) -> str:
        """The reward model's name, as it stands in records."""
        ...

    def start(self) -> None:
        """Begin to load what scoring needs, and return at once. Before this no thread runs and nothing is loaded."""
        ...

    @property
    def available(self) -> bool:
        """True while rewards can be expected. Otherwise a race draws only as many candidates as answers are wanted."""
        ...

    @property
    def n_away(self) -> int:
        """Number of reward servers that failed repeatedly and are not asked until a probe succeeds."""
        ...

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        """Return the reward of ``answer`` as the assistant's turn after ``messages``. Cancelling drops the work."""
        ...

    async def readiness(self) -> Readiness: ...

    async def aclose(self) -> None:
        """Release the model or close the connections."""
        ...
