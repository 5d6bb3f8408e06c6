"""The standing weight check: servers that do not list their adapters are checked again and again.

After a failed check the adapter counts as lost: the server gets no draws for it until a check passes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from gateway.backend.calls import Calls
from gateway.backend.kind import Kind
from gateway.backend.replicas import Replica, Replicas
from gateway.errors import GatewayError
from gateway.single_flight import KeyedTasks
from gateway.types import Prompt, Sampling
from gateway.weight_check import Served, WeightCheck, adapter_position, passed

EVERY_S = 180.0
AGAIN_S = 15.0  # after a failed check: the adapter may have been loaded again
_TOP_TOKENS = 5  # TGI gives no more
_SEED = 1  # without effect: the draws are greedy

log = structlog.get_logger()


@dataclass(eq=False)
class StandingCheck:
    """Checks the replicas of one pool, each by one check at a time."""

    replicas: Replicas
    calls: Calls
    kind: Kind
    _checked_at_s: dict[tuple[Replica, str], float] = field(default_factory=dict)
    _checks: KeyedTasks[tuple[Replica, str]] = field(default_factory=KeyedTasks)

    def tend(self, adapter: str, check: WeightCheck) -> None:
        """Begin the checks of an adapter that are due: every few minutes, and after a connection broke."""
        if self.kind.flavour.catalogue_path is not None:
            return  # its list of adapters is read for each draw
        for replica in self.replicas.all:
            key = (replica, adapter)
            if key not in self._checks and self._due(replica, adapter):
                self._checked_at_s[key] = self.replicas.clock()
                self._checks.start(key, partial(self._check, replica, adapter, check))

    async def aclose(self) -> None:
        await self._checks.aclose()

    def _due(self, replica: Replica, adapter: str) -> bool:
        last_s, broke_s = self._checked_at_s.get((replica, adapter)), replica.health.broke_at_s
        if last_s is None or (broke_s is not None and broke_s >= last_s):
            return not replica.health.ejected
        wait_s = AGAIN_S if replica.lacks(adapter) else EVERY_S
        return self.replicas.clock() - last_s >= wait_s and not replica.health.ejected

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
        probe = Prompt([{"role": "user", "content": prompt}], sampling, adapter)
        answer = await self.calls.complete(replica, probe, _SEED)
        entries: list[dict[str, Any]] = (answer.logprobs or {}).get("content", [])
        if answer.text and not entries:
            raise ValueError("the answer came without log-probabilities")
        return [
            (entry["token"], {one["token"]: float(one["logprob"]) for one in [*entry["top_logprobs"], entry]})
            for entry in entries
        ]
