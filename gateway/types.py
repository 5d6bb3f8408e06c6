"""The nouns that rooms exchange, and the seams (protocols) between them. No I/O, no behaviour beyond a property."""

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
"""How a request ended: with its answer; cut off in mid-stream, for its caller hung up or the gateway stopped; failed in
mid-stream."""
ArmName = Literal["stable", "canary", "holdback", "base"]
"""Which of the policies served side by side, or the base model where no server has their adapter; see
``gateway.policy``."""
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
    """How one draw is sampled. None means "the caller did not say": the backend's default holds.

    Units: ``max_tokens`` in tokens; ``seed`` is the caller's, from which each draw's own seed is derived.
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
    """What is asked of the backend: the conversation, how to sample, and which adapter answers (None: the base).

    ``meter`` counts what is drawn for it.
    """

    messages: Sequence[Message]
    sampling: Sampling
    adapter: str | None = None
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)
    lowered: dict[str, tuple[Any, Any]] = field(default_factory=dict, init=False, compare=False, repr=False)
    """Tools and response format by kind of server, as it takes them: worked out once for all draws of a race."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One draw's result, in OpenAI's terms whatever the backend's own were.

    ``text`` is None where the server gave no content. ``reasoned``: it gave reasoning beside the content, which is
    dropped; an answer without text is then one whose reasoning took all its tokens.
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
    """One piece of a streamed draw. The last one carries ``finish_reason``, token counts and ``reasoned``."""

    text: str = ""
    tool_calls: tuple[JsonObject, ...] = ()
    logprobs: JsonObject | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoned: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A reward (raw logit; higher is better) and whether the prompt's beginning had to be cut to fit the model."""

    reward: float
    prompt_truncated: bool = False


class Selection(StrEnum):
    """Why this answer won."""

    SCORED = "scored"  # the highest reward of at least two scored candidates
    FALLBACK = "fallback"  # several answers, too few rewards to compare them: the first one, never training data
    SINGLE = "single"  # there was one answer to choose from, or one that can be used


class Unusable(StrEnum):
    """Why a finished answer is not what its request asked for."""

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
    """One draw of a race, filled in as the race goes on.

    ``latency_ms`` runs from the draw's start to its last token; ``cut_at_tokens`` says how many tokens had been drawn,
    at most, when a stream ended before its answer did. ``unusable`` is why a finished answer cannot be used.
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
    """Where a request's time went, in milliseconds.

    ``queue`` waits for permits; ``generate`` runs from the first draw's start to the last counted answer; ``score``
    is what scoring added after that; ``journal`` waits for the record to be durable; ``overhead`` is the rest of
    ``total``: the gateway's own work.
    """

    queue_ms: float = 0.0
    generate_ms: float = 0.0
    score_ms: float = 0.0
    journal_ms: float = 0.0
    total_ms: float = 0.0

    @property
    def overhead_ms(self) -> float:
        """The gateway's own share of the total."""
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
    """How a race ended: every candidate, the winners best first, and why."""

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
        """Rewards in candidate order; None where there is none."""
        return [candidate.reward for candidate in self.candidates]

    @property
    def n_scored(self) -> int:
        """How many candidates have a reward."""
        return sum(candidate.reward is not None for candidate in self.candidates)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, once, as a finished draw counted them."""
        return next((c.answer.prompt_tokens for c in self.candidates if c.answer is not None), 0)

    @property
    def generated_tokens(self) -> int:
        """Tokens of every draw that was finished, returned or not, and of a stream that was cut."""
        return sum(c.cut_at_tokens or 0 if c.answer is None else c.answer.completion_tokens for c in self.candidates)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a part can serve, and in words why not."""

    ready: bool
    detail: str = ""
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """One server as a pool sees it: the kind of failure for which it is ejected, and whether it lacks an adapter."""

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


class Scorer(Protocol):
    """Gives a text its reward. Implementations raise only ``RewardError`` and its kin."""

    @property
    def name(self) -> str:
        """The reward model's name, as records carry it."""
        ...

    def start(self) -> None:
        """Begin to load what scoring needs; returns at once. Before that no thread runs and nothing is loaded."""
        ...

    @property
    def available(self) -> bool:
        """Whether rewards can be expected now; where not, a race draws no more answers than are wanted."""
        ...

    @property
    def n_away(self) -> int:
        """How many sources of rewards failed repeatedly and are not asked until a probe succeeds."""
        ...

    async def score(self, messages: Sequence[Message], answer: str) -> Score:
        """Reward of ``answer`` as the assistant's next turn after ``messages``. Cancelling drops the work."""
        ...

    async def readiness(self) -> Readiness:
        """Whether rewards can be had now."""
        ...

    async def aclose(self) -> None:
        """Release the model or the connection."""
        ...
