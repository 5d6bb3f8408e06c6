"""Answers of servers, and how tests read them."""

from __future__ import annotations

from typing import Any

from gateway.backend.flavours import FLAVOURS, Flavour
from gateway.backend.reading import StreamReader, read_answer
from gateway.types import Answer, Delta, JsonObject, Prompt, Sampling

TGI, VLLM = FLAVOURS["tgi"], FLAVOURS["vllm"]
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
PLAIN = Sampling()


def asked(sampling: Sampling = PLAIN, **history: Any) -> Prompt:
    return Prompt(history.get("messages", ()), sampling)


def read_whole(answer: Any, flavour: Flavour, sampling: Sampling = PLAIN) -> Answer:
    return read_answer(answer, flavour, asked(sampling))


def body(
    message: JsonObject, finish_reason: str | None = "stop", usage: Any = USAGE, logprobs: Any = None
) -> JsonObject:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": logprobs}
    return {"id": "", "choices": [choice], "usage": usage}


def chunk(delta: JsonObject, finish_reason: str | None = None, logprobs: Any = None) -> JsonObject:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}]}


def read_all(chunks: list[Any], sampling: Sampling = PLAIN) -> list[Delta]:
    reader = StreamReader(TGI, asked(sampling))
    return [delta for one in chunks for delta in reader.read(one)] + [reader.last()]


END: list[JsonObject] = [{"choices": [], "usage": USAGE}]
