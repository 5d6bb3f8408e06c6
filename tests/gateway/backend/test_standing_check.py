"""A TGI that was restarted without the adapter serves the base under its name: a weight check finds it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.backend import standing_check
from gateway.backend.pool import BackendPool
from gateway.errors import AdapterMissing
from gateway.types import Prompt, Sampling
from gateway.weight_check import CheckedPrompt, WeightCheck
from tests.gateway.backend.conftest import PoolOf, prompt
from tests.stubs.tgi import TgiStub
from tests.waiting import until

NAME = "rft-1"
PROMPTS = ("What floats?", "Why do cats purr?", "Name a colour.")


async def answers(pool: BackendPool, adapter: str | None) -> list[list[dict[str, Any]]]:
    found = []
    for text in PROMPTS:
        sampling = Sampling(temperature=0.0, max_tokens=6, logprobs=True, top_logprobs=5)
        asked = Prompt([{"role": "user", "content": text}], sampling, adapter)
        logprobs = (await pool.complete(asked, seed=1, replica=0)).logprobs
        found.append(logprobs["content"] if logprobs else [])
    return found


def likely(entry: dict[str, Any]) -> dict[str, float]:
    return {one["token"]: float(one["logprob"]) for one in [*entry["top_logprobs"], entry]}


async def check_of(stub: TgiStub, pool: BackendPool) -> WeightCheck:
    """Return the weight check that a night publishes: the adapter's answers, and the base's at the same place."""
    stub.knobs.update({"adapters": [NAME]})
    tuned, base = await answers(pool, NAME), await answers(pool, None)
    return tuple(
        CheckedPrompt(
            prompt=text,
            tokens=tuple(entry["token"] for entry in own),
            adapter=tuple(likely(entry) for entry in own),
            base=tuple(likely(entry) for entry in other),
        )
        for text, own, other in zip(PROMPTS, tuned, base, strict=True)
    )


async def test_a_lost_adapter_leaves_the_rotation_until_a_check_passes(
    stub: TgiStub, pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing_check, "EVERY_S", 0.0)
    monkeypatch.setattr(standing_check, "AGAIN_S", 0.0)
    pool = pool_of(stub.url)
    check = await check_of(stub, pool)

    def lacks() -> bool:
        pool.check_weights(NAME, check)
        return any(state.lacks_adapter for state in pool.states())

    stub.knobs.update({"adapters": []})
    await until(lacks)
    with pytest.raises(AdapterMissing):
        await pool.complete(prompt(adapter=NAME), seed=1, replica=pool.choose_replica())
    assert (await pool.complete(prompt(), seed=1, replica=pool.choose_replica())).text
    stub.knobs.update({"adapters": [NAME]})
    await until(lambda: not lacks())
    assert (await pool.complete(prompt(adapter=NAME), seed=1, replica=pool.choose_replica())).text


async def test_it_is_checked_again_when_a_connection_broke_and_not_before(stub: TgiStub, pool_of: PoolOf) -> None:
    pool = pool_of(stub.url)
    check = await check_of(stub, pool)
    pool.check_weights(NAME, check)
    await until(lambda: not pool._standing_check._checks)
    stub.knobs.update({"adapters": []})
    pool.check_weights(NAME, check)
    assert not pool._standing_check._checks
    replica = pool._replicas.all[0]
    replica.health.broke_at_s = pool._replicas.clock()
    pool.check_weights(NAME, check)
    await until(lambda: replica.lacks(NAME))
