"""A scripted engine core behind vLLM's real front end: real HTTP, rendering, validation and parsers, made-up tokens.

The last message says what the engine shall do, as JSON between ``@@`` and ``@@``: ``{"say": text}`` and optionally

- ``finish``: "stop" (the end token follows the text; the default), "length", "abort" (what a server that stops answers)
  or "error";
- ``delay_ms``: time before each token;
- ``hang``: no token ever comes.

Without a script the answer is "ok". Pooling requests get the number of prompt tokens as their only logit. It runs in
vLLM's own environment (``make vllm-front``) and imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from typing import Any

import numpy as np
import torch
from vllm.exceptions import LoRAAdapterNotFoundError
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, FinishReason
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.outputs import LogprobsLists

_SCRIPT = re.compile(r"@@(\{.*?\})@@", re.DOTALL)
_FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.ABORT,
    "error": FinishReason.ERROR,
}


class ScriptedEngine(EngineCoreClient):
    """Answers each request token by token, as its prompt's script says.

    Args:
        vllm_config: vLLM's own configuration of the server.
        tokenizer: Turns prompts into text and answers into tokens.
        log_path: File that gets one JSON line for each request and each abort; empty for none.
    """

    engine_ranks_managed = (0,)

    def __init__(self, vllm_config: Any, tokenizer: Any, log_path: str) -> None:
        self._config = vllm_config
        self._tokenizer = tokenizer
        self._log_path = log_path
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._requests: dict[str, EngineCoreRequest] = {}
        self._loras: set[int] = set()
        self.resources = type("Resources", (), {"engine_dead": False})()
        # The real engine core is a process of its own, which aborts what runs when it gets SIGTERM.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._abort_all)

    def shutdown(self, timeout: float | None = None) -> None:
        for task in self._running.values():
            task.cancel()

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("classify",) if self._config.model_config.runner_type == "pooling" else ("generate",)

    async def get_output_async(self) -> EngineCoreOutputs:
        return await self._outputs.get()

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        lora = request.lora_request.lora_name if request.lora_request else None
        params = request.sampling_params
        self._log(
            event="request",
            id=request.request_id,
            prompt=self._tokenizer.decode(request.prompt_token_ids),
            prompt_token_ids=request.prompt_token_ids,
            lora=lora,
            max_tokens=params.max_tokens if params else None,
            seed=params.seed if params else None,
            structured_outputs=str(params.structured_outputs) if params and params.structured_outputs else None,
        )
        answer = self._classify(request) if request.pooling_params is not None else self._generate(request)
        task = asyncio.create_task(answer)
        self._running[request.request_id] = task
        self._requests[request.request_id] = request
        task.add_done_callback(lambda _: self._forget(request.request_id))

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            if task := self._running.get(request_id):
                task.cancel()
                self._log(event="abort", id=request_id)

    async def add_lora_async(self, lora_request: Any) -> bool:
        if not await asyncio.to_thread(os.path.isdir, lora_request.lora_path):
            raise LoRAAdapterNotFoundError(lora_request.lora_name, lora_request.lora_path)
        self._loras.add(lora_request.lora_int_id)
        return True

    async def remove_lora_async(self, lora_id: int) -> bool:
        self._loras.discard(lora_id)
        return True

    async def list_loras_async(self) -> set[int]:
        return set(self._loras)

    async def is_sleeping_async(self) -> bool:
        return False

    async def reset_mm_cache_async(self) -> None:
        """Nothing is cached."""

    async def reset_prefix_cache_async(self, *_: bool) -> bool:
        """Nothing is cached."""
        return True

    def dp_engines_running(self) -> bool:
        return False

    def _forget(self, request_id: str) -> None:
        self._running.pop(request_id, None)
        self._requests.pop(request_id, None)

    def _abort_all(self) -> None:
        for request in list(self._requests.values()):
            self._running[request.request_id].cancel()
            self._put(request, [], finish_reason=FinishReason.ABORT)

    async def _classify(self, request: EngineCoreRequest) -> None:
        logit = torch.tensor([float(len(request.prompt_token_ids or []))])
        self._put(request, [], pooling_output=logit, finish_reason=FinishReason.STOP)

    async def _generate(self, request: EngineCoreRequest) -> None:
        prompt = self._tokenizer.decode(request.prompt_token_ids)
        scripts = _SCRIPT.findall(prompt)
        script = json.loads(scripts[-1]) if scripts else {}
        if script.get("hang"):
            await asyncio.Event().wait()
        params = request.sampling_params
        assert params is not None
        finish = script.get("finish", "stop")
        tokens = self._tokenizer.encode(script.get("say", "ok"), add_special_tokens=False)
        if finish == "stop":
            tokens.append(self._tokenizer.eos_token_id)
        limit = params.max_tokens or len(tokens)
        if len(tokens) > limit:
            tokens, finish = tokens[:limit], "length"
        if finish == "error":
            self._put(request, [], finish_reason=FinishReason.ERROR)
            return
        for index, token in enumerate(tokens):
            await asyncio.sleep(script.get("delay_ms", 0) / 1e3)
            last = index == len(tokens) - 1
            self._put(
                request,
                [token],
                finish_reason=_FINISH[finish] if last else None,
                new_logprobs=None if params.logprobs is None else _logprobs(token, params.logprobs),
            )

    def _put(self, request: EngineCoreRequest, tokens: list[int], **fields: Any) -> None:
        output = EngineCoreOutput(request_id=request.request_id, new_token_ids=tokens, **fields)
        self._outputs.put_nowait(EngineCoreOutputs(outputs=[output]))

    def _log(self, **facts: object) -> None:
        if self._log_path:
            with open(self._log_path, "a", encoding="utf-8") as log:
                log.write(json.dumps(facts) + "\n")


def _logprobs(token: int, count: int) -> LogprobsLists:
    """Return made-up log-probabilities of one token: the chosen one at -0.5 and ``count`` others below it.

    Shapes are those of ``LogprobsLists``: [1, count + 1], [1, count + 1] and [1].
    """
    tokens = np.array([[token, *range(100, 100 + count)]])
    values = np.array([[-0.5 - rank for rank in range(count + 1)]], dtype=np.float32)
    return LogprobsLists(tokens, values, np.array([1]))


def make_client(vllm_config: Any, *_: object, renderer: Any = None, **__: object) -> ScriptedEngine:
    """Stand in for ``EngineCoreClient.make_async_mp_client``."""
    return ScriptedEngine(vllm_config, renderer.tokenizer, os.environ.get("SCRIPTED_ENGINE_LOG", ""))
