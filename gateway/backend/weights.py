"""Checks again and again that servers which do not list their adapters still answer with them.

A failure is a lost adapter: the server leaves the rotation for that adapter until a check passes.
"""

from __future__ import annotations

import asyncio
import contextvars
from functools import partial
from typing import Any

import structlog

from gateway.backend.calls import Calls
from gateway.backend.kind import Kind
from gateway.backend.replicas import Replica, Replicas
from gateway.errors import GatewayError
from gateway.types import Prompt, Sampling
from gateway.weight_check import Served, WeightCheck, adapter_position, passed

EVERY_S = 180.0
AGAIN_S = 15.0
"""After a failed check: somebody may have put the adapter back."""
_TOP_TOKENS = 5  # TGI gives no more
_SEED = 1  # greedy: without effect, but every draw has one

log = structlog.get_logger()


class Weights:
    """Checks the replicas of one pool, each by one check at a time.

    Args:
        replicas: What is checked.
        calls: Makes the draws.
        kind: The replicas' flavour.
    """

    def __init__(self, replicas: Replicas, calls: Calls, kind: Kind) -> None:
        self._replicas = replicas
        self._calls = calls
        self._kind = kind
        self._checked_at_s: dict[tuple[Replica, str], float] = {}
        self._checks: dict[tuple[Replica, str], asyncio.Task[None]] = {}

    def tend(self, adapter: str, check: WeightCheck) -> None:
        """Begin the checks of an adapter that are due: every few minutes, and after a connection broke."""
        if self._kind.flavour.catalogue_path is not None:
            return  # it lists its adapters
        for replica in self._replicas.all:
            key = (replica, adapter)
            if key not in self._checks and self._due(replica, adapter):
                self._checked_at_s[key] = self._replicas.clock()
                task = asyncio.get_running_loop().create_task(
                    self._check(replica, adapter, check), name="weight-check", context=contextvars.Context()
                )
                self._checks[key] = task
                task.add_done_callback(partial(self._ended, key))

    async def aclose(self) -> None:
        """Stop the checks under way."""
        checks = list(self._checks.values())
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    def _ended(self, key: tuple[Replica, str], _: asyncio.Task[None]) -> None:
        self._checks.pop(key, None)

    def _due(self, replica: Replica, adapter: str) -> bool:
        last_s, broke_s = self._checked_at_s.get((replica, adapter)), replica.health.broke_at_s
        if last_s is None or (broke_s is not None and broke_s >= last_s):
            return not replica.health.ejected
        wait_s = AGAIN_S if replica.lacks(adapter) else EVERY_S
        return self._replicas.clock() - last_s >= wait_s and not replica.health.ejected

    async def _check(self, replica: Replica, adapter: str, check: WeightCheck) -> None:
        try:
            drawn = (self._draw(replica, one.prompt, len(one.tokens), adapter) for one in check)
            served = await asyncio.gather(*drawn)
        except (GatewayError, LookupError, TypeError, ValueError) as error:
            log.warning("weights_not_checked", replica=replica.name, adapter=adapter, error=type(error).__name__)
            self._checked_at_s.pop((replica, adapter), None)
            return
        at = adapter_position(check, served)
        lost = not passed(at)
        if lost != replica.lacks(adapter):
            (log.error if lost else log.info)(
                "adapter_lost" if lost else "adapter_found_again",
                replica=replica.name,
                adapter=adapter,
                place=round(at, 2),
            )
        replica.set_missing(adapter, missing=lost, until_changed=True)

    async def _draw(self, replica: Replica, prompt: str, tokens: int, adapter: str) -> Served:
        sampling = Sampling(temperature=0.0, max_tokens=tokens, logprobs=True, top_logprobs=_TOP_TOKENS)
        asked = Prompt([{"role": "user", "content": prompt}], sampling, adapter)
        answer = await self._calls.complete(replica, asked, _SEED)
        entries: list[dict[str, Any]] = (answer.logprobs or {}).get("content", [])
        if answer.text and not entries:
            raise ValueError("the answer came without log-probabilities")
        return [
            (entry["token"], {one["token"]: float(one["logprob"]) for one in [*entry["top_logprobs"], entry]})
            for entry in entries
        ]
