"""Records for the journal's tests."""

from gateway.errors import BackendFailed
from gateway.journal.record import CompletionRecord, completion_record
from gateway.types import Answer, AnswerRequest, Arm, Candidate, Message, Outcome, Plan, Sampling, Selection, Timings

MESSAGES: list[Message] = [
    {"role": "system", "content": "secret system"},
    {"role": "user", "content": "secret question"},
]
TOOL = {"type": "function", "function": {"name": "secret_tool", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "secret_tool", "arguments": "{}"}}
SAMPLING = Sampling(
    temperature=0.7,
    max_tokens=64,
    stop=("secret stop",),
    seed=7,
    logit_bias={"50256": -100.0},
    tools=(TOOL,),
    tool_choice={"type": "function", "function": {"name": "secret_tool"}},
    response_format={"type": "json_schema", "json_schema": {"name": "secret"}},
)


def outcome() -> Outcome:
    """Return a race of three: a text that wins, a tool call, and a failure."""
    candidates = [
        Candidate(0, 11, Answer("secret answer", "stop", 20, 5), reward=1.5, latency_ms=80.0),
        Candidate(1, 12, Answer(None, "tool_calls", 20, 9, tool_calls=(CALL,)), reward=-0.5, prompt_truncated=True),
        Candidate(2, 13, error=BackendFailed("secret message")),
    ]
    return Outcome(
        plan=Plan(
            n_asked=3,
            n_ordinary=2,
            seed=7,
            arm=Arm("stable", "rft-1", 2),
            policy_version=4,
            sampling=SAMPLING,
            exploration=True,
            exploration_probability=0.02,
        ),
        n_run=3,
        candidates=candidates,
        winners=[candidates[0]],
        selection=Selection.SCORED,
        timings=Timings(1.0, 80.0, 3.0, 2.0, 90.0),
        deadline_hit=True,
        reward_model="judge",
    )


def completion(id: str = "chatcmpl-1", *, store: bool = True) -> CompletionRecord:
    """Return the record of that race."""
    request = AnswerRequest(
        "ratchet", MESSAGES, SAMPLING, store=store, user="secret user", metadata={"k": "secret metadata"}
    )
    return completion_record(request, outcome(), id=id, key_id="4f2a", time_ms=1_700_000_000_000)
