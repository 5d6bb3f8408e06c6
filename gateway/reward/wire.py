"""The /classify protocol: encode requests to a reward server and parse its answers. No I/O.

Three servers speak it: vLLM (``input`` and ``data[i].probs``), SGLang (``text`` and a list of ``embedding``s) and this
project's own: vLLM's, plus whole conversations as ``input`` and ``prompt_truncated`` in the answer.

Source: vLLM's ``entrypoints/pooling/classify``, SGLang's native ``/classify`` (its ``/v1/classify`` applies a softmax,
which makes every one-label reward 1).
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, cast

import orjson

from gateway.errors import RewardError
from gateway.types import JsonObject, Message, Score

OWNER = "ratchet"
MAX_NAME_CHARS = 256
_ROLES = frozenset({"system", "user", "assistant", "tool"})


class Dialect(StrEnum):
    """The dialect of /classify, by ``owned_by`` in /v1/models."""

    OURS = OWNER
    VLLM = "vllm"
    SGLANG = "sglang"


def conversation(messages: Sequence[Message], answer: str) -> bytes:
    """Encode an ``input`` item of our own server: the answer is the last turn.

    Raises:
        RewardError: A tool call in it is not JSON.
    """
    turns: list[JsonObject] = [{**message, "content": _sendable(message["content"])} for message in messages]
    turns.append({"role": "assistant", "content": _sendable(answer)})
    try:
        return orjson.dumps({"messages": turns})
    except TypeError as error:
        raise RewardError("the conversation cannot be sent to the reward server") from error


def text(rendered: str) -> bytes:
    """Encode an ``input`` item of any server: a conversation that its chat template rendered."""
    return orjson.dumps(_sendable(rendered))


def request_body(dialect: Dialect, model: str, items: Sequence[bytes], *, activated: bool = False) -> bytes:
    """Encode the body of POST /classify. ``activated`` asks for the squashed reward, to compare with the raw one."""
    fragments = [orjson.Fragment(item) for item in items]
    if dialect is Dialect.SGLANG:
        return orjson.dumps({"model": model, "text": fragments})
    return orjson.dumps({"model": model, "input": fragments, "use_activation": activated})


def served_models(body: bytes) -> tuple[Dialect, dict[str, int | None]]:
    """Parse /v1/models: the dialect, and the models with the longest text that each takes, in tokens, if given.

    An unknown server is taken for vLLM.

    Raises:
        RewardError: It is not a list of models.
    """
    try:
        cards = orjson.loads(body)["data"]
        owners = [card.get("owned_by") for card in cards]
        dialect = next((Dialect(owner) for owner in owners if owner in set(Dialect)), Dialect.VLLM)
        # The name is sent with every answer, in a header.
        named = {str(card["id"]): _length(card.get("max_model_len")) for card in cards}
        return dialect, {name: length for name, length in named.items() if len(name) <= MAX_NAME_CHARS}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise RewardError("the reward server's /v1/models is not a list of models") from error


def scores(dialect: Dialect, body: bytes, count: int) -> list[Score | RewardError]:
    """Parse the scores in a server's answer, in the order of its ``input``.

    Raises:
        RewardError: It is not an answer to ``count`` items: not JSON, another number of rewards, another order.
    """
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RewardError("the reward server's answer is not JSON") from error
    items = answer if dialect is Dialect.SGLANG else answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise RewardError("the reward server's answer holds no list of rewards")
    if len(items) != count:
        raise RewardError(f"the reward server gave {len(items)} rewards for {count} answers")
    if dialect is Dialect.SGLANG:
        return [_score(item.get("embedding"), truncated=False) for item in items]
    if any(item.get("index") != position for position, item in enumerate(items)):
        raise RewardError("the reward server's rewards are out of order")
    return [_score(item.get("probs"), truncated=item.get("prompt_truncated") is True) for item in items]


def is_squashed(raw: Sequence[float], activated: Sequence[float]) -> bool:
    """Return True if a server applies its activation although asked not to, judged by probes scored both ways.

    If the two differ, the switch works. If they are equal, it does not; rewards that are then all within 0 and 1 are
    probabilities, not logits.
    """
    same = all(math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-4) for one, other in zip(raw, activated, strict=True))
    return same and all(0 <= reward <= 1 for reward in raw)


def parse_items(body: Any) -> list[str | tuple[list[Message], str]]:
    """Parse a call of our server: texts, or conversations with their answers.

    Raises:
        ValueError: The body is not valid; in the caller's terms.
    """
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")
    if "messages" in body:  # vLLM's form for one conversation
        return [_parse_item(body, "messages")]
    items = body.get("input")
    if isinstance(items, str | dict):
        items = [items]
    if not isinstance(items, list) or not items:
        raise ValueError("input must be a string, a conversation, or a list of them, and not empty")
    return [_parse_item(item, f"input[{position}]") for position, item in enumerate(items)]


def parse_activation(body: JsonObject) -> bool:
    """Return True if the call asks for squashed rewards, as vLLM does by default for one label (a sigmoid).

    Raises:
        ValueError: ``use_activation`` is not a boolean or null.
    """
    wanted = body.get("use_activation")
    if not isinstance(wanted, bool | None):
        raise ValueError("use_activation must be true, false or null")
    return wanted is not False


def classification(model: str, results: Sequence[tuple[Score | None, int]], *, activated: bool) -> bytes:
    """Encode our server's answer from scores and tokens read; a missing score is null."""
    tokens = sum(count for _, count in results)
    return orjson.dumps(
        {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": [
                {
                    "index": index,
                    "label": "LABEL_0",
                    "probs": [None if score is None else _sigmoid(score.reward) if activated else score.reward],
                    "num_classes": 1,
                    "prompt_truncated": score is not None and score.prompt_truncated,
                }
                for index, (score, _) in enumerate(results)
            ],
            "usage": {
                "prompt_tokens": tokens,
                "total_tokens": tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
    )


def _length(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _score(values: object, *, truncated: bool) -> Score | RewardError:
    if not isinstance(values, list) or len(values) != 1:
        return RewardError("the reward server's model does not have one label")
    value = values[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return RewardError("the reward server gave no number")
    return Score(float(value), truncated)


def _parse_item(item: object, where: str) -> str | tuple[list[Message], str]:
    if isinstance(item, str):
        if not item.strip():
            raise ValueError(f"{where} is empty")
        return item
    messages = item.get("messages") if isinstance(item, dict) else None
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where} must be a string or an object with messages")
    for message in messages:
        if not isinstance(message, dict) or str(message.get("role")) not in _ROLES:
            raise ValueError(f"{where}: each message needs a role: {', '.join(sorted(_ROLES))}")
        if not isinstance(message.get("content"), str | None):
            raise ValueError(f"{where}: the content of a message must be a string or null")
    *prompt, last = messages
    if last["role"] != "assistant" or last.get("content") is None:
        raise ValueError(f"{where}: the last message must be the assistant's answer")
    return [cast("Message", {"content": None, **message}) for message in prompt], last["content"]


def _sendable(content: str | None) -> str | None:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot."""
    return None if content is None else content.encode("utf-8", "replace").decode()


def _sigmoid(reward: float) -> float:
    return 1 / (1 + math.exp(-reward)) if reward >= 0 else math.exp(reward) / (1 + math.exp(reward))
