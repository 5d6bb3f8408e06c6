"""Two policies served by conversation, each by its own pool."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import pytest

from gateway.journal.record import CompletionRecord
from gateway.policy import PolicyStore
from tests.redis_server import RedisServer
from tests.serving import Serve, Served
from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub

DEAD = "http://127.0.0.1:9"
FAST = {"n": 3, "refresh_s": 0.05}


@pytest.fixture
async def other_pool() -> AsyncIterator[TgiStub]:
    """A second backend, which only a policy's URLs name."""
    async with TgiStub(Knobs(adapters=("new",))) as stub:
        yield stub


async def publish(served: Served, **changes: Any) -> None:
    """Publish a policy and wait until the gateway holds it."""
    settings = served.settings
    async with AsyncExitStack() as stack:
        store = PolicyStore(settings.policy, settings.redis, folder=settings.journal.spool_dir, n_limit=16)
        stack.push_async_callback(store.aclose)
        await store.refresh()
        await store.publish(store.current.successor(reason="test", **changes))
        version = store.current.version
    async with asyncio.timeout(20):
        while version != (await chat_about(served, "are you there?")).json()["best_of_n"]["policy"]:
            await asyncio.sleep(0.02)


async def chat_about(served: Served, text: str, **fields: Any) -> httpx2.Response:
    response = await served.chat(messages=[{"role": "user", "content": text}], **fields)
    assert 200 == response.status_code, response.text
    return response


async def reports(served: Served, count: int, **fields: Any) -> list[dict[str, Any]]:
    """Return the reports of ``count`` different conversations."""
    gate = asyncio.Semaphore(16)

    async def one(index: int) -> dict[str, Any]:
        async with gate:
            report: dict[str, Any] = (await chat_about(served, f"question {index}", **fields)).json()["best_of_n"]
        return report

    return await asyncio.gather(*(one(index) for index in range(count)))


async def test_two_policies_answer_by_their_shares(
    serve: Serve, redis_server: RedisServer, other_pool: TgiStub
) -> None:
    """Within binomial bounds (3.5 standard deviations), each with its adapter, N and pool, as the records show."""
    served = await serve(policy=FAST)
    await publish(served, canary={"adapter": "new", "n": 1, "urls": (other_pool.url,), "share": 0.3, "trial": "t"})
    before = other_pool.state.finished
    count, share = 300, 0.3
    found = await reports(served, count)
    canary = [report for report in found if report["arm"] == "canary"]
    assert abs(len(canary) - count * share) < 3.5 * math.sqrt(count * share * (1 - share))
    assert {("canary", "new", 1), ("stable", None, 3)} == {(r["arm"], r["adapter"], r["n"]) for r in found}
    assert len(canary) == other_pool.state.finished - before
    assert [] == [report for report in found if report["scored"] != report["n"]]
    records = [r for r in await served.records(count) if isinstance(r, CompletionRecord)]
    assert {("canary", "new"), ("stable", None)} == {(r.arm, r.adapter) for r in records}
    async with asyncio.timeout(20):  # gauges are set once a second
        while f"ratchet_policy_second_share {share}" not in (await served.http.get("/metrics")).text:
            await asyncio.sleep(0.05)
    assert 'ratchet_arms_total{arm="canary"}' in (await served.http.get("/metrics")).text


async def test_the_same_seed_gives_the_same_policy_and_the_same_winner(
    serve: Serve, redis_server: RedisServer, other_pool: TgiStub
) -> None:
    served = await serve(policy=FAST)
    await publish(served, canary={"adapter": "new", "n": 2, "urls": (other_pool.url,), "share": 0.5})
    for text in ("one", "two", "three", "four"):
        first, second = [(await chat_about(served, text, seed=5)).json() for _ in range(2)]
        assert first["best_of_n"]["arm"] == second["best_of_n"]["arm"]
        assert first["choices"] == second["choices"]


async def test_the_holdback_keeps_the_old_policy_on_its_share(
    serve: Serve, redis_server: RedisServer, other_pool: TgiStub
) -> None:
    served = await serve(policy=FAST)
    await publish(
        served,
        adapter="new",
        n=1,
        urls=(other_pool.url,),
        canary={"n": 3, "share": 0.2, "trial": "t", "holdback": True},
    )
    found = await reports(served, 60)
    assert {("holdback", None, 3), ("stable", "new", 1)} == {(r["arm"], r["adapter"], r["n"]) for r in found}


async def test_readiness_follows_the_policys_pool(serve: Serve, redis_server: RedisServer, other_pool: TgiStub) -> None:
    """A dead canary pool is reported, but the gateway stays ready."""
    served = await serve(policy=FAST)
    await publish(served, canary={"n": 1, "urls": (DEAD,), "share": 0.5})
    ready = (await served.http.get("/health/ready")).json()
    assert ("degraded", True) == (ready["status"], "127.0.0.1:9" in ready["parts"]["backend"]["detail"])
    await publish(served, urls=(other_pool.url,), canary=None)
    assert "ready" == (await served.http.get("/health/ready")).json()["status"]


async def test_both_policies_explore(serve: Serve, redis_server: RedisServer) -> None:
    """The curve of each policy stays measurable."""
    served = await serve(policy={**FAST, "exploration": 0.5, "n_max": 4})
    await publish(served, canary={"n": 1, "share": 0.5, "trial": "t"})
    found = await reports(served, 60)
    assert {("stable", 4), ("stable", 3), ("canary", 4), ("canary", 1)} == {(r["arm"], r["n"]) for r in found}
