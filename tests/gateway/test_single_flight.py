"""Calls of which one runs at a time: one that all who ask share, or one for each key."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
import structlog

from gateway.single_flight import KeyedTasks, SingleFlight


class Call:
    def __init__(self) -> None:
        self.started = 0
        self.context: dict[str, object] = {}
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.started += 1
        self.context = structlog.contextvars.get_contextvars()
        return await self.end


async def test_all_who_ask_while_a_call_runs_share_it_and_the_next_one_makes_another() -> None:
    flight, call = SingleFlight[str](), Call()
    asking = [asyncio.create_task(flight.result(call)) for _ in range(3)]
    await asyncio.sleep(0)
    call.end.set_result("a")
    assert ["a"] * 3 == await asyncio.gather(*asking)
    assert (1, False) == (call.started, flight.running)
    assert "a" == await flight.result(call)
    assert 2 == call.started


async def test_a_cancelled_waiter_leaves_the_call_to_the_others() -> None:
    flight, call = SingleFlight[str](), Call()
    first, second = (asyncio.create_task(flight.result(call)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    call.end.set_result("a")
    assert "a" == await second
    assert first.cancelled()


async def test_the_owner_learns_the_result_before_the_waiters() -> None:
    order: list[str] = []
    flight, call = SingleFlight[str](lambda task: order.append(task.result())), Call()

    async def ask() -> None:
        await flight.result(call)
        order.append("waiter")

    asking = asyncio.create_task(ask())
    await asyncio.sleep(0)
    call.end.set_result("owner")
    await asking
    assert ["owner", "waiter"] == order


async def test_an_error_reaches_the_waiters_and_the_call_belongs_to_no_request() -> None:
    flight, call = SingleFlight[str](), Call()
    with structlog.contextvars.bound_contextvars(request_id="r1"):
        asking = asyncio.create_task(flight.result(call))
        await asyncio.sleep(0)
    call.end.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await asking
    assert ({}, False) == (call.context, flight.running)


async def test_a_key_has_one_task_at_a_time_and_closing_cancels_it() -> None:
    tasks, ended, started = KeyedTasks[str](), asyncio.Event(), list[str]()

    async def run(name: str) -> None:
        started.append(name)
        await ended.wait()

    for name in ("a", "a", "b"):
        tasks.start(name, partial(run, name))
    await asyncio.sleep(0)
    assert (["a", "b"], 2, True) == (started, len(tasks), "a" in tasks)
    ended.set()
    while tasks:
        await asyncio.sleep(0)
    ended.clear()
    tasks.start("a", lambda: run("again"))
    await asyncio.sleep(0)
    await tasks.aclose()
    assert (["a", "b", "again"], 0) == (started, len(tasks))
