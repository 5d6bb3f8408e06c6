"""A stub of a reward server: /classify as vLLM, SGLang or this project's own server speaks it, on made-up rewards.

In a test: ``async with RewardStub(RewardKnobs(...)) as stub``; ``reward_of(text)`` is the reward it gives. As a
program: ``python -m tests.stubs.reward --latency-ms 5``. Like the servers it stands for it applies a sigmoid unless
``use_activation`` is false.
"""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from aiohttp import web

from tests.stubs.faults import Picker, hang_up
from tests.stubs.knobs import AnyKnobs
from tests.stubs.server import Handler, JsonResponse, StubServer, json_response, main
from tests.stubs.state import RewardState


class RewardFault(StrEnum):
    """The way in which a chosen call fails."""

    NONE = "none"
    STATUS = "status"  # the status of ``fault_status``
    NULL = "null"  # rewards are null
    NAN = "nan"  # rewards are a bare NaN, as Python's json writes it: not JSON
    WRONG_LENGTH = "wrong_length"  # one reward too few
    WRONG_ORDER = "wrong_order"  # the rewards are there, in another order
    TWO_LABELS = "two_labels"  # a classifier of two labels, not a reward model
    GARBAGE = "garbage"  # not JSON at all
    HANG = "hang"
    DISCONNECT = "disconnect"


class Dialect(StrEnum):
    """The server that it plays; /v1/models says so in ``owned_by``."""

    RATCHET = "ratchet"  # texts and conversations
    VLLM = "vllm"  # texts only
    SGLANG = "sglang"  # texts only, under ``text``; raw logits as ``embedding``


@dataclass(slots=True, kw_only=True)
class RewardKnobs(AnyKnobs):
    """Settings of the stub. A call fails when ``fault_next`` or ``fault_probability`` picks it."""

    model_id: str = "stub/reward"
    dialect: Dialect = Dialect.RATCHET
    latency_ms: float = 0.0
    latency_per_text_ms: float = 0.0
    shift: float = 0.0  # added to every reward: another model behind the same name
    always_activate: bool = False  # a server that ignores use_activation
    max_model_len: int = 0  # listed by /v1/models; 0 lists nothing
    refused: str = ""  # a call with a text that holds this is refused …
    refused_status: int = 400  # … with this status
    fault: RewardFault = RewardFault.NONE
    fault_status: int = 500
    fault_texts: int = 0  # null and nan: how many of a call's rewards, from the first; 0 is all
    fault_next: int = 0
    fault_probability: float = 0.0


def reward_of(text: str) -> float:
    """Return an answer's raw reward: it rises with the number of different words, plus a little chance against ties."""
    return len(set(text.split())) / 8 - 4 + zlib.crc32(text.encode("utf-8", "replace")) / 2**32 / 16


class RewardStub(StubServer):
    knobs: RewardKnobs
    state: RewardState

    def __init__(self, knobs: RewardKnobs | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.knobs = RewardKnobs() if knobs is None else knobs
        self.state = RewardState()
        self._picker = Picker()
        super().__init__(host=host, port=port)

    def routes(self) -> dict[tuple[str, str], Handler]:
        return {
            ("POST", "/classify"): self._classify,
            ("GET", "/health"): self._health,
            ("GET", "/v1/models"): self._models,
        }

    async def _health(self, http: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=200 if self.knobs.healthy else 503)

    async def _models(self, http: web.BaseRequest) -> web.StreamResponse:
        card = {"id": self.knobs.model_id, "object": "model", "created": 0, "owned_by": self.knobs.dialect.value}
        if self.knobs.max_model_len:
            card["max_model_len"] = self.knobs.max_model_len
        return json_response(orjson.dumps({"object": "list", "data": [card]}))

    async def _classify(self, http: web.BaseRequest) -> web.StreamResponse:
        knobs, state = self.knobs, self.state
        raw = await http.read()
        self.record(http, raw)
        if knobs.api_key and http.headers.get("Authorization") != f"Bearer {knobs.api_key}":
            return _error(401, "Unauthorized")
        try:
            texts, activated = self._read(orjson.loads(raw))
        except ValueError as error:
            state.rejected += 1
            return _error(400, str(error))
        if knobs.refused and any(knobs.refused in text for text in texts):
            state.rejected += 1
            return _error(knobs.refused_status, "the stub refuses this text")
        fault = knobs.fault if self._picker.picks(knobs) else RewardFault.NONE
        state.started += 1
        state.scoring += 1
        state.largest_batch = max(state.largest_batch, len(texts))
        state.changed()
        try:
            await asyncio.sleep((knobs.latency_ms + knobs.latency_per_text_ms * len(texts)) / 1000)
            if fault is RewardFault.HANG:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            state.cancelled += 1
            raise
        finally:
            state.scoring -= 1
            state.changed()
        if fault is RewardFault.NONE:
            state.finished += 1
            state.texts_scored += len(texts)
        else:
            state.failed += 1
        return self._answer(http, texts, activated, fault)

    def _read(self, body: Any) -> tuple[list[str], bool]:
        """Return the texts to score, and whether a sigmoid is applied."""
        if not isinstance(body, dict):
            raise ValueError("the body must be an object")
        sglang = self.knobs.dialect is Dialect.SGLANG
        items = body.get("text" if sglang else "input")
        if isinstance(items, str | dict):
            items = [items]
        if not isinstance(items, list) or not items:
            raise ValueError("input must be a text or a list")
        if body.get("model") not in {None, self.knobs.model_id}:
            raise ValueError(f"The model `{body.get('model')}` does not exist.")
        texts = [self._text(item) for item in items]
        return texts, not sglang and (self.knobs.always_activate or body.get("use_activation") is not False)

    def _text(self, item: Any) -> str:
        """Return the text to score, or a conversation's last turn. Conversations are this project's own extension."""
        if isinstance(item, str):
            return item
        messages = item.get("messages") if isinstance(item, dict) else item
        if self.knobs.dialect is not Dialect.RATCHET or not isinstance(messages, list) or not messages:
            raise ValueError("an input must be a string")
        return str(messages[-1]["content"])

    def _answer(
        self, http: web.BaseRequest, texts: list[str], activated: bool, fault: RewardFault
    ) -> web.StreamResponse:
        match fault:
            case RewardFault.STATUS:
                return _error(self.knobs.fault_status, "the stub fails")
            case RewardFault.GARBAGE:
                return json_response(bytes(range(128, 256)))
            case RewardFault.DISCONNECT:
                hang_up(http)
                return web.Response()
        rewards = [reward_of(text) + self.knobs.shift for text in texts]
        if activated:
            rewards = [1 / (1 + math.exp(-reward)) for reward in rewards]
        body = self._body(rewards, sum(len(text.split()) for text in texts), fault)
        if fault is RewardFault.NAN:
            body = body.replace(b"[null]", b"[NaN]")
        return JsonResponse(body)

    def _body(self, rewards: list[float], tokens: int, fault: RewardFault) -> bytes:
        values: list[list[float | None]] = [[reward] for reward in rewards]
        if fault in {RewardFault.NULL, RewardFault.NAN}:
            count = self.knobs.fault_texts or len(values)
            values[:count] = [[None] for _ in values[:count]]
        if fault is RewardFault.TWO_LABELS:
            values = [[reward, 1 - reward] for reward in rewards]
        rows = list(enumerate(values))
        if fault is RewardFault.WRONG_LENGTH:
            rows.pop()
        if fault is RewardFault.WRONG_ORDER:
            rows.reverse()
        if self.knobs.dialect is Dialect.SGLANG:
            return orjson.dumps([{"embedding": row, "meta_info": {"prompt_tokens": tokens}} for _, row in rows])
        data = [{"index": i, "label": "LABEL_0", "probs": row, "num_classes": len(row)} for i, row in rows]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0, "prompt_tokens_details": None}
        envelope = {"id": "classify-0", "object": "list", "created": int(time.time()), "model": self.knobs.model_id}
        return orjson.dumps({**envelope, "data": data, "usage": usage})


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return json_response(orjson.dumps({"error": error}), status=status)


if __name__ == "__main__":
    main(RewardStub, RewardKnobs, "A stub of a reward server.")
