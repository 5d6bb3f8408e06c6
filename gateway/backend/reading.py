"""Read a backend's answers, whole or streamed, into OpenAI's terms, and refuse those that make no sense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from gateway.backend.failures import raise_if_error
from gateway.backend.flavours import Flavour
from gateway.backend.stopping import StopTrimmer
from gateway.backend.tool_calls import ToolCalls
from gateway.errors import BackendError, BackendFailed, BackendProtocolError, BackendUnreachable
from gateway.metering import tokens_at_most
from gateway.types import Answer, Delta, FinishReason, JsonObject, Prompt, Sampling

_MOST_TOKENS = 10_000_000  # no prompt or answer is longer; a larger count would use up a key's budget
_REASONING = ("reasoning", "reasoning_content")  # fields next to ``content``: vLLM's, and most other servers'
_LONG_TOKEN_CHARS = 32  # few tokens are longer: a longer piece may be several


def read_answer(body: Any, flavour: Flavour, prompt: Prompt) -> Answer:
    """Read a whole chat completion.

    Token counts are required: an answer of unknown length would falsify usage, rate limits and the night's guards.

    Raises:
        BackendError: The body is an error, or not a chat completion.
    """
    raise_if_error(body, flavour)
    choice = _choice(body)
    message = _object(choice, "message")
    sampling = prompt.sampling
    calls = ToolCalls(prompt.messages).read_whole(message)
    reasoned = _has_reasoning(message)
    content = _text(message)
    entries = _logprob_entries(choice, sampling)
    if calls or reasoned:
        entries = _entries_of(content or "", entries)
    trimmer = _trimmer(flavour, sampling)
    text, shown = trimmer.feed(content or "", entries)
    rest, more = trimmer.finish()
    entries = [*shown, *more]
    usage = _object(body, "usage")
    return Answer(
        text=text + rest or (None if calls else content and ""),
        finish_reason=_finish_reason(choice.get("finish_reason"), flavour, called=bool(calls), stopped=trimmer.stopped),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        tool_calls=calls,
        logprobs=_logprobs(entries) if entries else None,
        reasoned=reasoned,
    )


class StreamReader:
    """Reads one streamed draw, chunk by chunk; ``last`` returns the closing piece."""

    def __init__(self, flavour: Flavour, prompt: Prompt) -> None:
        self._flavour = flavour
        self._sampling = prompt.sampling
        self._trimmer = _trimmer(flavour, prompt.sampling)
        self._forced = flavour.forced_call(prompt)
        self._calls = ToolCalls(prompt.messages)
        self._finish_reason: str | None = None
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None
        self._usage_is_last = False
        self._pieces = 0
        self._most_tokens = 0
        self._reasoned = False
        self.overrun = False
        """The server goes on after a stop string that it did not see (one within a token)."""

    @property
    def finished(self) -> bool:
        """True once the answer is whole: later chunks and errors cannot change it."""
        return self._finish_reason is not None

    def read(self, chunk: Any) -> Iterator[Delta]:
        """Yield what may be shown of a chunk. After a finished answer nothing is an error any more.

        Raises:
            BackendError: The chunk is an error, or not a chunk.
        """
        if not self.finished:
            raise_if_error(chunk, self._flavour)
        if not isinstance(chunk, dict):
            if self.finished:
                return
            raise BackendProtocolError("the backend's stream holds something that is no chunk")
        self._read_usage(chunk.get("usage"))
        self._usage_is_last = not chunk.get("choices")
        if not chunk.get("choices"):
            return
        try:
            yield from self._read_choice(_choice(chunk))
        except BackendError:
            if not self.finished:
                raise

    def drawn(self) -> tuple[int | None, int]:
        """Return the tokens of prompt and answer so far: the server's counts, or the most that the answer can have.

        Without counts, a piece of one token counts as one; of a piece that may be several tokens the bytes are counted,
        because no token is shorter than a byte.
        """
        if self._completion_tokens is not None:
            return self._prompt_tokens, self._completion_tokens
        limit = self._sampling.max_tokens
        return None, self._most_tokens if limit is None else min(self._most_tokens, limit)

    def last(self) -> Delta:
        """Return the piece that ends the draw: the text held back, the finish reason and the token counts.

        Raises:
            BackendProtocolError: The stream ended before the answer did.
        """
        reason = self._finish_reason or self._silent_end()
        if reason is None and not self._trimmer.stopped:
            raise BackendProtocolError("the backend's stream ended before its answer did")
        self._calls.check_ended()
        text, entries = self._trimmer.finish()
        return Delta(
            text,
            (),
            _logprobs(entries) if entries else None,
            _finish_reason(reason, self._flavour, called=self._calls.opened, stopped=self._trimmer.stopped),
            *self.drawn(),
            self._reasoned,
        )

    def _read_usage(self, usage: Any) -> None:
        if not usage:
            return
        try:
            counts = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        except BackendProtocolError:
            if self.finished:
                return
            raise
        self._prompt_tokens, self._completion_tokens = counts

    def _read_choice(self, choice: JsonObject) -> Iterator[Delta]:
        if self._forced is not None:
            choice = self._forced.streamed(choice)
        delta = {} if choice.get("delta") is None else _object(choice, "delta")
        _refuse_broken_off(choice.get("finish_reason"))
        self.overrun = self._trimmer.stopped and not self.finished
        self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._pieces += 1
        self._most_tokens += _tokens_of_piece(delta, self._flavour)
        reasons = _has_reasoning(delta)
        self._reasoned = self._reasoned or reasons
        content = _text(delta) or ""
        entries = _logprob_entries(choice, self._sampling)
        if reasons or (not content and (self._reasoned or delta.get("tool_calls"))):
            entries = []  # they belong to the reasoning, its closing tag or a call
        text, shown = self._trimmer.feed(content, entries)
        calls = tuple(self._calls.read_pieces(delta))
        if text or calls or shown:
            yield Delta(text, calls, _logprobs(shown) if shown else None)

    def _silent_end(self) -> str | None:
        """Return the finish reason of a stream that gave none, if its usage shows that it came to its end.

        TGI ends a streamed tool call so; and where max_tokens cut a call before its name, only the usage comes.
        """
        if self._completion_tokens is None or not self._usage_is_last:
            return None
        if self._calls.opened:
            return "stop"
        return "length" if self._flavour.hides_nameless_calls and self._sampling.tools and not self._pieces else None


def _tokens_of_piece(delta: JsonObject, flavour: Flavour) -> int:
    """Return the most tokens that a piece of a stream may stand for."""
    texts = [text for field in ("content", *_REASONING) if isinstance(text := delta.get(field), str)]
    calls = delta.get("tool_calls")
    if calls:
        return tokens_at_most([*texts, calls])
    if flavour.token_a_piece and all(text.isascii() and len(text) <= _LONG_TOKEN_CHARS for text in texts):
        return 1  # several tokens may make one character that is not ASCII, or were held back and come at once
    return max(1, sum(map(tokens_at_most, texts)))


def _trimmer(flavour: Flavour, sampling: Sampling) -> StopTrimmer:
    return StopTrimmer(sampling.stop if flavour.keeps_stop_text else ())


def _choice(body: Any) -> JsonObject:
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BackendProtocolError("the backend's answer has no choices")
    return choices[0]


def _object(parent: JsonObject, key: str) -> JsonObject:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise BackendProtocolError(f"the backend's answer has no {key}")
    return value


def _count(usage: JsonObject, key: str) -> int:
    value = usage.get(key) if isinstance(usage, dict) else None
    if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
        raise BackendProtocolError(f"the backend's answer has no {key}")
    return value


def _text(message: JsonObject) -> str | None:
    text = message.get("content")
    if not isinstance(text, str | None):
        raise BackendProtocolError("the backend's answer has a content that is not text")
    return text


def _has_reasoning(message: JsonObject) -> bool:
    return any(message.get(field) for field in _REASONING)


def _refuse_broken_off(reason: object) -> None:
    """Raise if the server, not the model, ended the answer.

    When vLLM and SGLang are stopped (SIGTERM), they end running draws so, with HTTP 200 and the text so far.

    Raises:
        BackendUnreachable: The server is going away; another replica can answer.
        BackendFailed: Something broke in the server.
    """
    if reason == "abort":
        raise BackendUnreachable("the backend stopped in the middle of its answer")
    if reason == "error":
        raise BackendFailed("the backend failed in the middle of its answer")


def _finish_reason(reason: object, flavour: Flavour, *, called: bool, stopped: bool) -> FinishReason:
    if stopped:
        return "stop"
    _refuse_broken_off(reason)
    known = flavour.finish_reasons.get(reason) if isinstance(reason, str) else None
    if known is None:
        raise BackendProtocolError("the backend's answer has no known finish reason")
    if known in ("stop", "tool_calls"):
        # Some servers say "stop" after a call, and vLLM "tool_calls" if it could read no call in a forced answer.
        return "tool_calls" if called else "stop"
    return known


def _logprob_entries(choice: JsonObject, sampling: Sampling) -> list[JsonObject]:
    """Return one entry a token, with as many alternatives as were asked for."""
    logprobs = choice.get("logprobs")
    if not sampling.logprobs or logprobs is None:
        return []
    try:
        return [_logprob_entry(entry, sampling.top_logprobs or 0) for entry in logprobs["content"] or ()]
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise BackendProtocolError("the backend's answer has logprobs that make no sense") from error


def _logprob_entry(entry: JsonObject, alternatives: int) -> JsonObject:
    best = (entry.get("top_logprobs") or [])[:alternatives]
    return {**_token(entry), "top_logprobs": [_token(alternative) for alternative in best]}


def _token(entry: JsonObject) -> JsonObject:
    token, logprob, given = entry["token"], entry["logprob"], entry.get("bytes")
    # TGI writes minus infinity as null.
    if not isinstance(logprob, float | int | None) or not isinstance(given, list | None):
        raise TypeError
    # If a token is a part of a character, only the server knows its bytes.
    return {"token": token, "logprob": logprob, "bytes": list(bytes(given) if given else token.encode())}


def _entries_of(text: str, entries: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the entries of ``text`` alone if reasoning or calls are among the tokens; [] if they cannot be found."""
    drawn = b"".join(bytes(entry["bytes"]) for entry in entries)
    start, at = drawn.rfind(text.encode("utf-8", "surrogatepass")) if text else -1, 0
    for index, entry in enumerate(entries):
        if at == start:
            return list(entries[index:])
        at += len(entry["bytes"])
    return []


def _logprobs(entries: list[JsonObject]) -> JsonObject:
    return {"content": entries, "refusal": None}
