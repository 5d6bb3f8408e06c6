"""A stub of vLLM 0.33: chat, models, adapters at run time and /classify, as its real front end answers.

It says "ok", or what a script in the last message directs (``@@{"say": "Hello"}@@``, with ``finish`` "abort" or
"error"). In a test: ``async with VllmStub(VllmKnobs(...)) as stub``; as a program: ``python -m tests.stubs.vllm``.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tests.stubs.knobs import AnyKnobs
from tests.stubs.server import Handler, StubServer, json_response, main, text_response
from tests.stubs.state import State
from tests.stubs.tgi_generation import count_tokens
from tests.stubs.vllm_rules import Refusal, check_types, check_values, too_long

_DIRECTIONS = re.compile(r"@@(\{.*\})@@", re.DOTALL)
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_TOKEN = re.compile(r"</?think>|\s*\w+|\s*[^\w\s<]+|<|\s+")
_END = "<|im_end|>"


@dataclass(slots=True, kw_only=True)
class VllmKnobs(AnyKnobs):
    """The options with which the stub was started."""

    model: str = "model"
    adapters: tuple[str, ...] = ()  # loaded from the start
    tool_parser: bool = False  # --enable-auto-tool-choice --tool-call-parser hermes
    reasoning_parser: bool = False  # --reasoning-parser qwen3
    runtime_adapters: bool = True  # VLLM_ALLOW_RUNTIME_LORA_UPDATING
    pooling: bool = False  # --runner pooling: a reward model
    max_model_len: int = 2048
    latency_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class _Draw:
    """One draw: its tokens and its end."""

    tokens: list[str]
    text: str
    finish: str
    stop_string: str | None = None

    @property
    def count(self) -> int:
        """The number of generated tokens, the end token included."""
        return len(self.tokens)


class VllmStub(StubServer):
    knobs: VllmKnobs
    state: State

    def __init__(self, knobs: VllmKnobs | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.knobs = VllmKnobs() if knobs is None else knobs
        self.state = State()
        self.adapters = dict.fromkeys(self.knobs.adapters, "")
        super().__init__(host=host, port=port)

    def routes(self) -> dict[tuple[str, str], Handler]:
        """Return vLLM's routes; those of the other runner and of adapters are missing where they do not serve."""
        routes: dict[tuple[str, str], Handler] = {
            ("GET", "/health"): self._health,
            ("GET", "/version"): self._version,
            ("GET", "/v1/models"): self._models,
        }
        if self.knobs.pooling:
            return routes | {("POST", "/classify"): self._classify}
        if self.knobs.runtime_adapters:
            routes[("POST", "/v1/load_lora_adapter")] = self._load
            routes[("POST", "/v1/unload_lora_adapter")] = self._unload
        return routes | {("POST", "/v1/chat/completions"): self._chat, ("POST", "/tokenize"): self._tokenize}

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        key = self.knobs.api_key
        guarded = request.path.startswith("/v1")
        if key and guarded and request.headers.get("authorization") != f"Bearer {key}":
            return json_response(orjson.dumps({"error": "Unauthorized"}), status=401)
        response = await super()._dispatch(request)
        if response.status in {404, 405} and not response.prepared and response.content_type != "application/json":
            detail = {404: "Not Found", 405: "Method Not Allowed"}[response.status]
            return json_response(orjson.dumps({"detail": detail}), status=response.status)
        return response

    async def _chat(self, http: web.BaseRequest) -> web.StreamResponse:
        raw = await http.read()
        self.record(http, raw)
        try:
            body = _parsed(raw)
            check_types(body)
            model = body.get("model", self.knobs.model)
            if model != self.knobs.model and model not in self.adapters:
                words = f"The model `{model}` does not exist. Valid aliases: {self.knobs.model}."
                raise Refusal(404, "NotFoundError", words, "model")
            prompt_tokens = _prompt_tokens(body)
            check_values(
                body,
                has_tool_parser=self.knobs.tool_parser,
                max_model_len=self.knobs.max_model_len,
                prompt_tokens=prompt_tokens,
            )
            draw = _draw(body)
        except Refusal as refusal:
            return json_response(orjson.dumps(refusal.body), status=refusal.status)
        self.state.started += 1
        if self.knobs.latency_ms:
            await asyncio.sleep(self.knobs.latency_ms / 1e3)
        self.state.finished += 1
        if body.get("stream"):
            return await self._stream(http, body, draw, prompt_tokens)
        if draw.finish == "error":
            return json_response(orjson.dumps(_ENGINE_ERROR.body), status=500)
        return json_response(orjson.dumps(self._whole(body, draw, prompt_tokens)))

    def _whole(self, body: dict[str, Any], draw: _Draw, prompt_tokens: int) -> dict[str, Any]:
        message, details, finish = self._message(body, draw)
        choice = {
            "message": message,
            "logprobs": _logprobs(body, draw.tokens),
            "finish_reason": finish,
            "stop_reason": draw.stop_string,
            **dict.fromkeys(("token_ids", "routed_experts", "weight_versions")),
        }
        return {
            **self._envelope("chat.completion"),
            "choices": [{"index": index, **choice} for index in range(body.get("n") or 1)],
            "service_tier": None,
            "system_fingerprint": "vllm-0.33.0-stub",
            "usage": _usage(prompt_tokens, draw.count * (body.get("n") or 1))
            | {"prompt_tokens_details": None, "completion_tokens_details": details},
            **dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text")),
            **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics")),
        }

    def _message(self, body: dict[str, Any], draw: _Draw) -> tuple[dict[str, Any], dict[str, int] | None, str]:
        """Return the message, the usage's details and the finish reason, after vLLM's parsers."""
        content: str | None = draw.text
        message: dict[str, Any] = dict.fromkeys(("refusal", "annotations", "audio", "function_call"))
        details, reasoning, finish = None, None, draw.finish
        if self.knobs.reasoning_parser and draw.text.startswith("<think>"):
            reasoning, closed, rest = draw.text.removeprefix("<think>").partition("</think>")
            content = rest if closed else None
            details = {"reasoning_tokens": len(_TOKEN.findall(reasoning))}
        call = _CALL.search(draw.text) if self.knobs.tool_parser and body.get("tools") else None
        if call is not None:
            content = "" if body.get("tool_choice") == "required" else None
            message["tool_calls"] = [_tool_call(call[1])]
            finish = "tool_calls"
        return {"role": "assistant", "content": content, **message, "reasoning": reasoning}, details, finish

    async def _stream(
        self, http: web.BaseRequest, body: dict[str, Any], draw: _Draw, prompt_tokens: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(http)
        envelope = self._envelope("chat.completion.chunk")
        first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        events: list[Any] = [{**envelope, "choices": [first], "prompt_token_ids": None, "prompt_text": None}]
        if draw.finish == "error":
            events.append(_ENGINE_ERROR.body)
        else:
            include_usage = (body.get("stream_options") or {}).get("include_usage", False)
            fingerprint = {"system_fingerprint": "vllm-0.33.0-stub"}
            deltas, finish = self._deltas(body, draw)
            for delta, logprobs, last in deltas:
                choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish if last else None}
                choice["token_ids"] = None
                if last:
                    choice |= {"stop_reason": draw.stop_string, "weight_versions": None}
                told = fingerprint if last and not include_usage else {}
                events.append({**envelope, "choices": [choice], **told, "kv_transfer_params": None})
            if include_usage:
                events.append({**envelope, "choices": [], "usage": _usage(prompt_tokens, draw.count), **fingerprint})
        await response.write(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _deltas(self, body: dict[str, Any], draw: _Draw) -> tuple[list[tuple[dict[str, Any], Any, bool]], str]:
        """Return each chunk's delta, logprobs and whether it is the last, and the finish reason."""
        if self.knobs.tool_parser and body.get("tools") and "<tool_call>" in draw.text:
            return self._call_deltas(draw)
        deltas: list[tuple[dict[str, Any], Any, bool]] = []
        field = "reasoning" if self.knobs.reasoning_parser and draw.text.startswith("<think>") else "content"
        for index, token in enumerate(draw.tokens):
            last = index == draw.count - 1
            if field == "reasoning" and token in {"<think>", "</think>"}:
                field = "reasoning" if token == "<think>" else "content"
                continue
            delta = {field: "" if token == _END else token}
            deltas.append((delta, _logprobs(body, [token]), last))
        return deltas, draw.finish

    @staticmethod
    def _call_deltas(draw: _Draw) -> tuple[list[tuple[dict[str, Any], Any, bool]], str]:
        """Return a streamed tool call: its name, its arguments piece by piece, and an empty last delta."""
        found = _CALL.search(draw.text)
        name = re.search(r'"name": "(\w+)"', draw.text)
        deltas: list[tuple[dict[str, Any], Any, bool]] = []
        if name is not None:
            opening = {"id": f"chatcmpl-tool-{uuid.uuid4().hex[:16]}", "type": "function", "index": 0}
            deltas.append(({"content": None, "tool_calls": [{**opening, "function": {"name": name[1]}}]}, None, False))
        if found is not None:
            for piece in _TOKEN.findall(_tool_call(found[1])["function"]["arguments"]):
                call = {"index": 0, "function": {"arguments": piece}}
                deltas.append(({"content": None, "tool_calls": [call]}, None, False))
        return [*deltas, ({}, None, True)], "length" if found is None else "tool_calls"

    async def _tokenize(self, http: web.BaseRequest) -> web.StreamResponse:
        """Count a conversation's tokens as its template renders it."""
        raw = await http.read()
        self.record(http, raw)
        count = _prompt_tokens(orjson.loads(raw))
        told = {"count": count, "max_model_len": self.knobs.max_model_len, "tokens": [1] * count, "token_strs": None}
        return json_response(orjson.dumps(told))

    async def _classify(self, http: web.BaseRequest) -> web.StreamResponse:
        """Return the number of words as each text's only logit."""
        texts = orjson.loads(await http.read())["input"]
        for text in texts:
            if not text:
                refusal = Refusal(400, "BadRequestError", "The decoder prompt cannot be empty")
                return json_response(orjson.dumps(refusal.body), status=400)
            if count_tokens(text) > self.knobs.max_model_len:
                return json_response(orjson.dumps(too_long(self.knobs.max_model_len).body), status=400)
        data = [
            {"index": index, "label": "LABEL_0", "probs": [float(count_tokens(text))], "num_classes": 1}
            for index, text in enumerate(texts)
        ]
        total = sum(count_tokens(text) for text in texts)
        usage = _usage(total, 0) | {"prompt_tokens_details": None, "completion_tokens_details": None}
        return json_response(orjson.dumps({**self._envelope("list"), "data": data, "usage": usage}))

    async def _health(self, _: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=200 if self.knobs.healthy else 503)

    async def _version(self, _: web.BaseRequest) -> web.StreamResponse:
        return json_response(b'{"version":"0.33.0"}')

    async def _models(self, _: web.BaseRequest) -> web.StreamResponse:
        base = self.knobs.model
        data = [self._model(base, None), *(self._model(name, base) for name in self.adapters)]
        return json_response(orjson.dumps({"object": "list", "data": data}))

    def _model(self, name: str, parent: str | None) -> dict[str, Any]:
        allowed = ("sampling", "logprobs", "view")
        refused = ("create_engine", "search_indices", "fine_tuning")
        permission: dict[str, Any] = {f"allow_{right}": right in allowed for right in (*allowed, *refused)}
        permission |= {"id": "modelperm-stub", "object": "model_permission", "created": int(time.time())}
        permission |= {"organization": "*", "group": None, "is_blocking": False}
        facts = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "vllm", "root": name}
        return {**facts, "parent": parent, "max_model_len": self.knobs.max_model_len, "permission": [permission]}

    async def _load(self, http: web.BaseRequest) -> web.StreamResponse:
        asked = orjson.loads(await http.read())
        self.record(http, orjson.dumps(asked))
        name, path = asked["lora_name"], asked["lora_path"]
        if name in self.adapters:
            words = f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set"
            refusal = Refusal(400, "BadRequestError", words + " 'load_inplace' to True.")
        elif not await asyncio.to_thread(Path(path).is_dir):
            refusal = Refusal(404, "NotFoundError", f"Loading lora {name} failed: No adapter found for {path}")
        else:
            self.adapters[name] = path
            return text_response(f"Success: LoRA adapter '{name}' added successfully.")
        return json_response(orjson.dumps(refusal.body), status=refusal.status)

    async def _unload(self, http: web.BaseRequest) -> web.StreamResponse:
        asked = orjson.loads(await http.read())
        self.record(http, orjson.dumps(asked))
        name = asked["lora_name"]
        if self.adapters.pop(name, None) is None:
            refusal = Refusal(404, "NotFoundError", f"The lora adapter '{name}' cannot be found.")
            return json_response(orjson.dumps(refusal.body), status=404)
        return text_response(f"Success: LoRA adapter '{name}' removed successfully.")

    def _envelope(self, kind: str) -> dict[str, Any]:
        envelope = {"id": f"chatcmpl-{uuid.uuid4().hex[:16]}", "object": kind, "created": int(time.time())}
        return {**envelope, "model": self.knobs.model}


_ENGINE_ERROR = Refusal(500, "InternalServerError", "Internal server error")


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        words = "1 validation error:\n  {'type': 'json_invalid'}"
        raise Refusal(400, "Bad Request", words, "body.14") from error


def _draw(body: dict[str, Any]) -> _Draw:
    found = _DIRECTIONS.search(_text(body["messages"][-1]))
    script = orjson.loads(found[1]) if found else {}
    say, finish = script.get("say", "ok"), script.get("finish", "stop")
    stopped_by = None
    for stop in [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []:
        if stop in say:
            say, stopped_by = say.partition(stop)[0], stop
    tokens = _TOKEN.findall(say)
    limit = body.get("max_tokens") or len(tokens) + 1
    if len(tokens) >= limit:
        tokens, finish = tokens[:limit], "length"
    text = "".join(tokens)
    return _Draw([*tokens, _END] if finish == "stop" else tokens, text, finish, stopped_by)


def _prompt_tokens(body: dict[str, Any]) -> int:
    return 4 + sum(count_tokens(_text(message)) for message in body["messages"])


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def _tool_call(said: str) -> dict[str, Any]:
    call = orjson.loads(said)
    arguments = orjson.dumps(call["arguments"]).decode().replace('":', '": ')
    return {
        "id": f"chatcmpl-tool-{uuid.uuid4().hex[:16]}",
        "type": "function",
        "function": {"name": call["name"], "arguments": arguments},
    }


def _logprobs(body: dict[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None
    entries = []
    for token in tokens:
        chosen = {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
        others = [{"token": "t", "logprob": -1.5, "bytes": [116]}] * max(0, (body.get("top_logprobs") or 0) - 1)
        entries.append({**chosen, "top_logprobs": [chosen, *others][: body.get("top_logprobs") or 0]})
    return {"content": entries}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "total_tokens": total, "completion_tokens": completion_tokens}


if __name__ == "__main__":
    main(VllmStub, VllmKnobs, "A stub of vLLM.")
