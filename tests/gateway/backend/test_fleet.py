"""A pool over several servers of which some fail: callers are answered, and the sick server is left alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.backend import prober, usual_time
from gateway.backend.pool import BackendPool
from gateway.errors import BackendFailed, BackendRejected, BackendUnreachable, RequestContained
from gateway.settings import BackendSettings
from tests.gateway.backend.conftest import PoolOf, prompt
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.tgi import TgiStub
from tests.waiting import until


@pytest.fixture
async def stubs() -> AsyncIterator[list[TgiStub]]:
    """Five servers."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(TgiStub(Knobs(record_requests=100_000))) for _ in range(5)]


async def race(pool: BackendPool, n: int = 1, text: str = "What floats?", **sampling: Any) -> list[Any]:
    """Return the answers and errors of one race's draws."""
    route = pool.choose_replica()
    draws = (pool.complete(prompt(text, **sampling), seed=seed, replica=route) for seed in range(n))
    return await asyncio.gather(*draws, return_exceptions=True)


async def streamed(pool: BackendPool, text: str = "What floats?") -> str:
    stream = pool.stream(prompt(text), seed=1, replica=pool.choose_replica())
    return "".join([delta.text async for delta in stream])


def drawn(*stubs: TgiStub) -> int:
    """Return how many draws reached these servers."""
    return sum(request.method == "POST" for stub in stubs for request in stub.state.requests)


def broken(stubs: list[TgiStub]) -> list[TgiStub]:
    return [stub for stub in stubs if stub.state.failed]


SICK = [
    {"fault": Fault.STATUS, "fault_status": 500},
    {"fault": Fault.STATUS, "fault_status": 424},
    {"fault": Fault.STATUS, "fault_status": 429},
    {"fault": Fault.HTML, "fault_status": 401},
    {"fault": Fault.HTML, "fault_status": 200},
    {"fault": Fault.HTML, "fault_status": 503},
    {"fault": Fault.HALF_JSON},
    {"fault": Fault.DISCONNECT},
]


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("sick", SICK, ids=lambda knobs: "-".join(str(value) for value in knobs.values()))
async def test_with_one_of_three_servers_failing_every_request_is_answered(
    stubs: list[TgiStub], pool_of: PoolOf, sick: dict[str, Any], n: int
) -> None:
    """After a few errors the sick server gets almost no draws."""
    pool = pool_of(*(stub.url for stub in stubs[:3]))
    stubs[0].knobs.update({**sick, "fault_probability": 1.0})
    for number in range(30):
        answers = await race(pool, n, f"question {number}")
        assert not [answer for answer in answers if isinstance(answer, BaseException)]
        assert await streamed(pool, f"stream {number}")
    assert 1 <= drawn(stubs[0]) <= 8 * n


async def test_a_refused_request_is_not_retried(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    pool = pool_of(*(stub.url for stub in stubs[:2]))
    stubs[0].knobs.update({"fault": Fault.STATUS, "fault_status": 422, "fault_probability": 1.0})
    with pytest.raises(BackendRejected):
        await pool.complete(prompt(), seed=1, replica=0)
    assert 0 == drawn(stubs[1])


async def test_retries_do_not_multiply_an_outage(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    """Once the budget is spent, draws are hardly repeated."""
    pool = pool_of(*(stub.url for stub in stubs[:3]))
    for stub in stubs[:3]:
        stub.knobs.update({"fault": Fault.STATUS, "fault_probability": 1.0})
    for number in range(200):
        await race(pool, 4, f"question {number}")
    assert 800 <= drawn(*stubs) <= 800 * 1.2 + 130


async def test_a_race_that_breaks_two_servers_goes_to_no_third(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    pool = pool_of(*(stub.url for stub in stubs))
    for stub in stubs:
        stub.knobs.update({"fault": Fault.DISCONNECT, "fault_probability": 1.0})
    assert {RequestContained} == {type(answer) for answer in await race(pool, 4, "boom")}
    for _ in range(3):
        assert {RequestContained} == {type(answer) for answer in await race(pool, 4, "boom")}
        with pytest.raises(RequestContained):
            await streamed(pool, "boom")
    assert 2 == len(broken(stubs))
    for stub in stubs:
        stub.knobs.update({"fault_probability": 0.0})
    assert not [answer for answer in await race(pool, 4, "fine") if isinstance(answer, BaseException)]


async def test_streams_that_break_count_as_well(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    pool = pool_of(*(stub.url for stub in stubs))
    for stub in stubs:
        stub.knobs.update({"fault": Fault.DISCONNECT, "fault_probability": 1.0, "fault_after_tokens": 3})
    for expected in (BackendUnreachable, RequestContained, RequestContained):
        with pytest.raises(expected):
            await streamed(pool, "boom")
    assert 2 == len(broken(stubs))


async def test_refused_connections_make_no_request_a_suspect(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    """As in a rolling restart, they say nothing about the request."""
    pool = pool_of(*(stub.url for stub in stubs[:3]))
    for stub in stubs[:3]:
        await stub.stop()
    [error] = await race(pool)
    assert BackendUnreachable is type(error)
    assert pool._containment.idle


async def test_an_overdue_draw_is_hedged(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    """The race goes to one other replica; the slow draws are cancelled, and the slow server is left alone."""
    pool = pool_of(*(stub.url for stub in stubs[:3]))
    for number in range(30):
        await race(pool, 1, f"question {number}")
    before = drawn(stubs[0])
    stubs[0].knobs.update({"fault": Fault.HANG, "fault_probability": 1.0})
    for number in range(12):
        answers = await race(pool, 4, f"question {number}")
        assert not [answer for answer in answers if isinstance(answer, BaseException)]
    assert 1 <= drawn(stubs[0]) - before <= 3 * 4 + 1
    await stubs[0].state.until(lambda state: state.generating == 0)


async def test_a_stream_without_a_first_piece_is_hedged(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    pool = pool_of(*(stub.url for stub in stubs[:2]))
    for number in range(24):
        await streamed(pool, f"question {number}")
    stubs[0].knobs.update({"fault": Fault.HANG, "fault_probability": 1.0})
    for number in range(4):
        assert await streamed(pool, f"question {number}")


async def test_a_server_that_answers_nothing_is_found_hung_and_returns_later(
    stubs: list[TgiStub], pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its health check succeeds all the time, but readiness reports that it hangs."""
    monkeypatch.setattr(prober, "_LEAST_WAIT_S", 0.2)
    monkeypatch.setattr(prober, "_GRACE_S", 0.1)
    pool = pool_of(stubs[0].url, unhealthy_s=0.2)
    for number in range(24):
        await race(pool, 1, f"question {number}")
    stubs[0].knobs.update({"fault": Fault.HANG, "fault_probability": 1.0})
    draw = asyncio.create_task(race(pool))
    replica = pool._replicas.all[0]
    await until(lambda: replica.health.ejected)
    found = await pool.readiness()
    assert not found.ready
    assert "hangs" in found.detail
    draw.cancel()
    stubs[0].knobs.update({"fault_probability": 0.0})

    def well() -> bool:
        pool.tend()
        return not replica.health.ejected

    await until(well)
    assert (await pool.readiness()).ready


async def test_a_request_that_hangs_two_servers_goes_to_no_third(
    stubs: list[TgiStub], pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prober, "_LEAST_WAIT_S", 0.2)
    monkeypatch.setattr(prober, "_GRACE_S", 0.1)
    pool = pool_of(*(stub.url for stub in stubs))
    for number in range(24):
        await race(pool, 1, f"question {number}")
    for stub in stubs:
        stub.knobs.update({"fault": Fault.HANG, "fault_probability": 1.0})
    before = drawn(*stubs)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        with structlog.contextvars.bound_contextvars(key="mobile"):
            draw = asyncio.create_task(race(pool, 1, "boom"))
        await until(lambda: pool._containment.contained == 1)
    draw.cancel()
    assert [(1, "mobile"), (2, "mobile")] == [
        (line["breaks"], line.get("key")) for line in logs if line["event"] == "request_broke_server"
    ]
    [error] = await race(pool, 1, "boom")
    assert RequestContained is type(error)
    assert 4 == drawn(*stubs) - before  # two draws, and two probes


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_broke_one_server_and_hangs_another_is_hedged_to_no_third(
    stubs: list[TgiStub], pool_of: PoolOf, stream: bool
) -> None:
    """A request that broke none is hedged."""
    pool = pool_of(*(stub.url for stub in stubs[:3]))
    for number in range(24):
        await (streamed(pool, f"question {number}") if stream else race(pool, 1, f"question {number}"))
    stubs[0].knobs.update({"fault": Fault.DISCONNECT, "fault_text": "boom"})
    for stub in stubs[1:3]:
        stub.knobs.update({"fault": Fault.HANG, "fault_text": "boom"})
    route = pool.choose_replica()
    route.replica = pool._replicas.all[0]
    asked = prompt("boom")
    draw = asyncio.ensure_future(
        anext(pool.stream(asked, seed=1, replica=route)) if stream else pool.complete(asked, seed=1, replica=route)
    )
    done, _ = await asyncio.wait([draw], timeout=2.5)  # the second draw is overdue after half a second
    assert not done
    saw = [any(b"boom" in request.body for request in stub.state.requests) for stub in stubs[:3]]
    assert 2 == sum(saw)
    draw.cancel()
    stubs[0].knobs.update({"fault_text": ""})
    stubs[1].knobs.update({"fault_text": "slow"})
    stubs[2].knobs.update({"fault_text": ""})
    route = pool.choose_replica()
    route.replica = pool._replicas.all[1]
    asked = prompt("slow")
    if stream:
        assert await anext(pool.stream(asked, seed=1, replica=route))
    else:
        assert await pool.complete(asked, seed=1, replica=route)


async def test_a_retry_goes_to_the_replica_that_the_race_is_hedged_at(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    """A request that breaks servers reaches two of them at most, hedges and retries together."""
    pool = pool_of(*(stub.url for stub in stubs))
    first, *_, last = pool._replicas.all
    stubs[0].knobs.update({"fault": Fault.DISCONNECT, "fault_probability": 1.0})
    for number in range(8):
        route = pool.choose_replica()
        route.replica, route.hedge = first, last
        assert await pool.complete(prompt(f"question {number}"), seed=1, replica=route)
        pool._replicas.readmit(first)
    assert (8, 8) == (drawn(stubs[0]), drawn(stubs[-1]))


async def test_a_single_sick_server_is_unready_once_a_probe_confirms_it(stubs: list[TgiStub], pool_of: PoolOf) -> None:
    """Failures of callers' requests alone do not make a gateway unready."""
    pool = pool_of(stubs[0].url, unhealthy_s=0.2)
    stubs[0].knobs.update({"fault": Fault.STATUS, "fault_status": 500, "fault_probability": 1.0})
    for number in range(3):
        [error] = await race(pool, 1, f"question {number}")
        assert BackendFailed is type(error)
    found = await pool.readiness()
    assert (True, True) == (found.ready, "status 500" in found.detail)

    def confirmed() -> bool:
        pool.tend()
        ejection = pool._replicas.all[0].health.ejection
        return ejection is not None and ejection.confirmed

    await until(confirmed)
    assert not (await pool.readiness()).ready


async def test_a_fleet_that_is_busy_everywhere_is_not_hedged(
    stubs: list[TgiStub], pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every draw is overdue, but a second one would only join another queue. An idle replica does take one."""
    monkeypatch.setattr(usual_time, "COLD_S", 0.1)
    pool = pool_of(*(stub.url for stub in stubs[:2]))
    await pool.learn()  # load is compared relative to capacity
    for stub in stubs[:2]:
        stub.knobs.update({"latency_ms": 400.0})
    await asyncio.gather(*(race(pool, 1, f"question {number}") for number in range(8)))
    assert (4, 4) == (drawn(stubs[0]), drawn(stubs[1]))
    route = pool.choose_replica()
    route.replica = pool._replicas.all[0]
    await pool.complete(prompt("alone"), seed=1, replica=route)
    assert (5, 5) == (drawn(stubs[0]), drawn(stubs[1]))


async def test_a_single_replica_is_never_hedged(
    stubs: list[TgiStub], pool_of: PoolOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usual_time, "COLD_S", 0.05)
    stubs[0].knobs.update({"latency_ms": 300.0})
    with capture_logs() as logs:
        assert not [one for one in await race(pool_of(stubs[0].url), 4) if isinstance(one, BaseException)]
    assert (4, []) == (drawn(stubs[0]), [line for line in logs if line["event"] == "backend_draw_hedged"])


async def test_hedges_are_a_twentieth_of_the_races_beyond_a_first_burst(
    stubs: list[TgiStub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usual_time, "COLD_S", 0.02)
    monkeypatch.setattr(usual_time, "_LEAST_S", 0.02)
    monkeypatch.setattr(usual_time, "_FACTOR", 0.0)
    moves: list[str] = []
    settings = BackendSettings(urls=(stubs[0].url, stubs[1].url), unhealthy_s=0)
    stubs[0].knobs.update({"latency_ms": 100.0})
    began_s = time.monotonic()
    async with BackendPool(settings, on_move=moves.append) as pool:
        with capture_logs() as logs:
            for number in range(60):
                route = pool.choose_replica()
                route.replica = pool._replicas.all[0]
                asked = prompt(f"question {number}")
                await asyncio.gather(*(pool.complete(asked, seed=seed, replica=route) for seed in range(3)))
    took_s = time.monotonic() - began_s
    assert 22 <= moves.count("hedge") <= 20 + 60 * 0.05 + took_s * 0.1
    hedges = [(line["log_level"], line["hedged_races"]) for line in logs if line["event"] == "backend_draw_hedged"]
    assert [("info", count + 1) for count in range(moves.count("hedge"))] == hedges
