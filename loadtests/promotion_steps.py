"""The steps by which an operator and a night bring an adapter to traffic, on a running embedded stack."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console

from distill import settings as distill_settings
from distill.dataset import curate
from distill.dataset.example import Example
from distill.dataset.split import conversation_key
from distill.promotion.adapter import Adapter
from distill.promotion.load import load
from distill.promotion.policies import known_policies, start_canary
from distill.promotion.publish import publish
from distill.promotion.weight_check import check_replicas
from gateway import settings as gateway_settings
from gateway.journal.record import CompletionRecord
from gateway.journal.stream import START, StreamTail
from gateway.policy import Policy, PolicyStore
from gateway.types import Arm
from loadtests.traffic import Traffic

HARM_RANK = 8
TELL_EVERY_S = 20.0

T = TypeVar("T")

console = Console()


class Trial:
    """The steps, timed and printed. The stack's variables and the night's are in the environment.

    Args:
        folder: Folder for everything that the steps write.
        traffic: The traffic in progress.
        limit_s: Longest wait for each step.
    """

    def __init__(self, folder: Path, traffic: Traffic, *, limit_s: float) -> None:
        self.seconds: dict[str, float] = {}
        self.seen: dict[str, str] = {}
        self._folder = folder
        self._traffic = traffic
        self._limit_s = limit_s
        self._gateway = gateway_settings.load()
        self._settings = distill_settings.load()

    def records(self) -> list[CompletionRecord]:
        """Return every race in the stream."""

        async def read() -> list[CompletionRecord]:
            async with contextlib.aclosing(StreamTail(self._gateway.redis)) as tail:
                found, place = [], START
                while entries := await tail.read(place):
                    place = entries[-1].entry_id
                    found += [entry.record() for entry in entries]
                return [record for record in found if isinstance(record, CompletionRecord)]

        return asyncio.run(read())

    def history(self) -> list[Policy]:
        """Return every policy, the one in force first."""

        async def read() -> list[Policy]:
            async with self._store() as store:
                return await known_policies(store)

        return asyncio.run(read())

    def winners(self, count: int) -> list[Example]:
        """Wait for this many races that may train, by the night's own rules."""

        def found() -> list[Example]:
            fit = [record for record in self.records() if curate.unfit(record) is None]
            examples = [
                curate.example(record, conversation_key(record.messages or []), self._settings.dataset, disliked=False)
                for record in fit
            ]
            return [one for one in examples if isinstance(one, Example)]

        return self.wait(f"{count} races that may train", lambda: every if len(every := found()) >= count else None)

    def train(self, examples: Sequence[Example]) -> Path:
        """Train on examples, and return the checkpoint."""
        import torch

        from distill.training.train import train

        torch.set_num_threads(1)  # the other core is for the traffic
        with self.timed("train"):
            trained = train(examples, [], self._settings.training, self._folder / "training")
        self.say(f"trained on {trained.examples} winners: loss {trained.losses[0]:.2f} to {trained.losses[-1]:.2f}")
        return trained.checkpoints[-1]

    def bring(self, checkpoint: Path, trial: str, *, n: int, rivals: Sequence[Adapter] = ()) -> Adapter:
        """Bring a checkpoint to a share of the conversations, as a night does."""
        promotion = self._settings.promotion
        with self.timed(f"{trial}: publish"):
            adapter = publish(
                checkpoint, promotion.adapters_dir, model="", run=trial, n_allowed=n, n_base=n, rivals=rivals
            )
        with self.timed(f"{trial}: load"):
            asyncio.run(load(adapter, self._gateway.backend, promotion))
        with self.timed(f"{trial}: canary"):
            seen = asyncio.run(check_replicas(adapter, self._gateway.backend))
        self.seen[adapter.name] = "; ".join(map(str, seen))
        self.say(self.seen[adapter.name])

        async def start() -> Policy:
            async with self._store() as store:
                arm = Arm("canary", adapter.name, n, default_temperature=self._gateway.policy.default_temperature)
                reason = f"{trial}: half of the conversations"
                return await start_canary(store, arm, share=promotion.canary_share, trial=trial, reason=reason)

        policy = asyncio.run(start())
        self.say(f"policy {policy.version}: {adapter.name} with N = {n} answers {promotion.canary_share:.0%}")
        return adapter

    def await_verdict(self, trial: str, *, promoted: bool) -> Policy:
        """Wait until the guard has ended the trial, and return the policy in force.

        Raises:
            SystemExit: It ended the other way.
        """
        with self.timed(f"{trial}: guard"):
            policy = self.wait(f"the guard's decision on {trial}", lambda: _ended(self.history()))
        self.say(f"policy {policy.version}: {policy.reason}")
        if promoted == (policy.undoes == trial):
            raise SystemExit(f"the guard did not decide as expected: {policy.reason}")
        return policy

    def await_answers(self, count: int) -> None:
        """Wait for this many more answers."""
        enough = len(self._traffic.answered) + count
        self.wait("more answers", lambda: True if len(self._traffic.answered) >= enough else None)

    def wait(self, what: str, ready: Callable[[], T | None]) -> T:
        """Wait until ``ready`` returns something, and return it."""
        began = told = time.monotonic()
        while (found := ready()) is None:
            if time.monotonic() - began > self._limit_s:
                raise SystemExit(f"still waiting for {what} after {self._limit_s:g} s")
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                self.say(f"waiting for {what}{self._pairs()}")
            time.sleep(1)
        return found

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Time a step."""
        began = time.monotonic()
        self.say(step)
        yield
        self.seconds[step] = round(time.monotonic() - began, 1)

    def say(self, words: str) -> None:
        """Print what happens, and how the traffic fares."""
        stand = f"{len(self._traffic.answered):>4} answered, {len(self._traffic.failed)} failed"
        console.print(f"{time.strftime('%H:%M:%S')} {stand} | {words}", highlight=False, markup=False, soft_wrap=True)

    def _pairs(self) -> str:
        with contextlib.suppress(OSError, ValueError, KeyError):
            evidence = json.loads(self._settings.promotion.guard_file.read_bytes())["evidence"]
            return f": {len(evidence['new'])} pairs"
        return ""

    def _store(self) -> AbstractAsyncContextManager[PolicyStore]:
        return PolicyStore.opened(self._gateway, folder=self._folder / "operator")


def _ended(known: Sequence[Policy]) -> Policy | None:
    return known[0] if known[0].canary is None else None


def harmful(folder: Path, strength: float) -> Path:
    """Write a checkpoint of random matrices on SmolLM2's down projections, in PEFT's format."""
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    weights = {}
    for layer in range(30):
        stem = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        weights[f"{stem}.lora_A.weight"] = draw.normal(0, 1536**-0.5, (HARM_RANK, 1536)).astype(np.float32)
        weights[f"{stem}.lora_B.weight"] = draw.normal(0, strength, (576, HARM_RANK)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": HARM_RANK, "lora_alpha": HARM_RANK}
    config |= {"target_modules": ["down_proj"], "base_model_name_or_path": "random"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
