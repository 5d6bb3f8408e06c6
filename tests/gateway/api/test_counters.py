"""Counting what keys use: the same in Redis and in this process, exact in time, and never over the limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from gateway.api.counters import Counters, CountersUnavailable, LocalCounters, Refusal, SharedCounters
from gateway.api.keyfile import Limits
from tests.redis_server import RedisServer

LEASE_S = 30.0


@dataclass(slots=True)
class Clock:
    now_us: int = 0

    def __call__(self) -> int:
        return self.now_us


async def refusal_of(counters: Counters, key_id: str, limits: Limits, lease: str) -> Refusal | None:
    """Count one request of a key, and return the limit that is reached, if any."""
    return (await counters.enter(key_id, limits, lease)).refusal


@pytest.fixture(params=["in Redis", "in this process"])
async def counters(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[Counters]:
    if request.param == "in this process":
        yield LocalCounters(lease_s=LEASE_S)
        return
    async with Redis.from_url(redis_server.url) as redis:
        yield SharedCounters(redis, key_prefix="test", lease_s=LEASE_S)


async def test_as_many_requests_as_the_limit_are_admitted_at_once_and_no_more(counters: Counters) -> None:
    limits = Limits(requests_per_minute=5)
    entered = [await refusal_of(counters, "a", limits, str(index)) for index in range(6)]
    assert [None] * 5 == entered[:5]
    assert entered[5] is not None
    assert "requests_per_minute" == entered[5].limit
    assert 0 < entered[5].wait_s <= 12
    assert await refusal_of(counters, "b", limits, "another key") is None


async def test_the_wait_is_exact(counters: Counters) -> None:
    """The next request is admitted after the wait named, and not after two thirds of it."""
    limits = Limits(requests_per_minute=30)
    while (refusal := await refusal_of(counters, "a", limits, "x")) is None:
        pass
    assert 0 < refusal.wait_s <= 2
    await asyncio.sleep(refusal.wait_s * 2 / 3)
    early = await refusal_of(counters, "a", limits, "x")
    if early is not None:  # a busy machine may have slept past the moment
        assert early.wait_s < refusal.wait_s / 2
        await asyncio.sleep(early.wait_s)
        assert await refusal_of(counters, "a", limits, "x") is None


async def test_races_in_flight_are_limited_until_they_end(counters: Counters) -> None:
    limits = Limits(races_in_flight=2)
    assert [None, None] == [await refusal_of(counters, "a", limits, lease) for lease in ("one", "two")]
    refused = await refusal_of(counters, "a", limits, "three")
    assert refused is not None
    assert ("races_in_flight", 1.0) == (refused.limit, refused.wait_s)
    await counters.leave("a", limits, "one", 0)
    await counters.leave("a", limits, "one", 0)
    assert await refusal_of(counters, "a", limits, "three") is None
    assert await refusal_of(counters, "a", limits, "four") is not None


async def test_tokens_are_paid_at_the_end_and_a_debt_must_be_waited_out(counters: Counters) -> None:
    limits = Limits(tokens_per_minute=600)
    assert await refusal_of(counters, "a", limits, "one") is None
    await counters.leave("a", limits, "one", 500)
    assert await refusal_of(counters, "a", limits, "two") is None
    await counters.leave("a", limits, "two", 700)  # 600 more than there was: what refills in a minute
    refused = await refusal_of(counters, "a", limits, "three")
    assert refused is not None
    assert "tokens_per_minute" == refused.limit
    assert 50 < refused.wait_s <= 60.1


async def test_a_token_takes_a_whole_number_of_microseconds_to_refill() -> None:
    counters, limits = LocalCounters(lease_s=LEASE_S, clock_us=Clock(1_000)), Limits(tokens_per_minute=7)
    await counters.leave("a", limits, "one", 1)
    assert 8.571428 == (await counters.enter("a", limits, "two")).tokens_full_in_s


async def test_a_refused_request_costs_nothing(counters: Counters) -> None:
    limits = Limits(requests_per_minute=2, races_in_flight=1)
    assert await refusal_of(counters, "a", limits, "one") is None
    assert await refusal_of(counters, "a", limits, "two") is not None
    await counters.leave("a", limits, "one", 0)
    assert await refusal_of(counters, "a", limits, "three") is None


async def test_a_race_whose_gateway_died_ends_with_its_lease(redis_server: RedisServer) -> None:
    clock = Clock()
    own = LocalCounters(lease_s=1.0, clock_us=clock)
    limits = Limits(races_in_flight=1)
    assert await refusal_of(own, "a", limits, "lost") is None
    clock.now_us = 1_000_000
    assert await refusal_of(own, "a", limits, "next") is None
    async with Redis.from_url(redis_server.url) as redis:
        shared = SharedCounters(redis, key_prefix="test", lease_s=0.2)
        assert await refusal_of(shared, "a", limits, "lost") is None
        async with asyncio.timeout(10):
            while await refusal_of(shared, "a", limits, "next") is not None:
                await asyncio.sleep(0.01)


async def test_gateways_share_what_they_count(redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url) as first, Redis.from_url(redis_server.url) as second:
        gateways = [SharedCounters(redis, key_prefix="test", lease_s=LEASE_S) for redis in (first, second)]
        limits = Limits(requests_per_minute=7)
        entering = [refusal_of(gateways[index % 2], "a", limits, str(index)) for index in range(20)]
        entered = await asyncio.gather(*entering)
        assert 7 == entered.count(None)


async def test_counts_expire_in_redis(redis_server: RedisServer) -> None:
    limits = Limits(10, 10, 10)
    async with Redis.from_url(redis_server.url) as redis:
        shared = SharedCounters(redis, key_prefix="test", lease_s=LEASE_S)
        await refusal_of(shared, "a", limits, "one")
        assert {b"test:limits:{a}:buckets", b"test:limits:{a}:races"} == set(await redis.keys())
        assert all([0 < await redis.ttl(key) <= 61 for key in await redis.keys()])
        await shared.leave("a", limits, "one", 100)
        assert [b"test:limits:{a}:buckets"] == await redis.keys()
        assert 600 < await redis.ttl("test:limits:{a}:buckets") <= 662  # until the debt is paid


async def test_a_redis_that_refuses_or_is_down_is_reported(redis_server: RedisServer) -> None:
    async with Redis.from_url(redis_server.url, socket_timeout=5) as redis:
        shared = SharedCounters(redis, key_prefix="test", lease_s=LEASE_S)
        await redis.set("test:limits:{a}:buckets", "not a hash")
        with pytest.raises(CountersUnavailable):
            await refusal_of(shared, "a", Limits(1, 1, 1), "one")
        redis_server.kill()
        with pytest.raises(CountersUnavailable):
            await refusal_of(shared, "a", Limits(1, 1, 1), "one")


@given(
    per_minute=st.integers(1, 100_000),
    steps=st.lists(st.tuples(st.integers(0, 90_000_000), st.integers(1, 30)), max_size=20),
)
def test_a_bucket_never_admits_more_than_its_content_and_its_refill(
    per_minute: int, steps: list[tuple[int, int]]
) -> None:
    """In any period from the start: at most the limit, plus the limit for each minute."""

    async def run() -> None:
        clock = Clock(1_000)
        own, limits, entered = LocalCounters(lease_s=1, clock_us=clock), Limits(requests_per_minute=per_minute), 0
        for pause_us, asked in steps:
            clock.now_us += pause_us
            for _ in range(asked):
                refusal = await refusal_of(own, "a", limits, "x")
                entered += refusal is None
                if refusal is not None:
                    wait_us = round(refusal.wait_s * 1e6)
                    clock.now_us += wait_us - 1
                    assert await refusal_of(own, "a", limits, "x") is not None
                    clock.now_us += 1
                    assert await refusal_of(own, "a", limits, "x") is None
                    entered += 1
            # Intervals are whole microseconds, rounded down: hence the thousandth.
            assert entered <= per_minute * (1 + (clock.now_us - 1_000) / 60e6) * 1.002 + 1

    asyncio.run(run())


async def test_admission_returns_what_is_left(counters: Counters) -> None:
    limits = Limits(requests_per_minute=60, tokens_per_minute=600)
    full = [await counters.enter("a", limits, str(index)) for index in range(3)]
    assert [1, 2, 3] == [pytest.approx(entrance.requests_full_in_s, abs=0.3) for entrance in full]
    assert [0, 0, 0] == [entrance.tokens_full_in_s for entrance in full]
    await counters.leave("a", limits, "0", 700)
    refused = await counters.enter("a", limits, "4")
    assert refused.refusal is not None
    assert pytest.approx(70, abs=0.5) == refused.tokens_full_in_s
    assert pytest.approx(3, abs=0.5) == refused.requests_full_in_s  # a refused request was not counted


MINUTE_US = 60_000_000


@pytest.mark.parametrize(("later_us", "enters"), [(-1, False), (0, True), (1, True)])
async def test_a_request_is_admitted_at_the_microsecond_that_was_named(later_us: int, enters: bool) -> None:
    clock = Clock(7)
    own, limits = LocalCounters(lease_s=LEASE_S, clock_us=clock), Limits(requests_per_minute=4)
    assert [15.0, 30.0, 45.0, 60.0] == [(await own.enter("a", limits, "x")).requests_full_in_s for _ in range(4)]
    refused = await own.enter("a", limits, "x")
    assert (Refusal("requests_per_minute", 15.0), 60.0) == (refused.refusal, refused.requests_full_in_s)
    clock.now_us += 15_000_000 + later_us
    assert enters == ((await own.enter("a", limits, "x")).refusal is None)


@pytest.mark.parametrize(
    ("paid", "wait_s"),
    [(598, None), (599, None), (600, 0.1), (601, 0.2), (1200, 60.1)],
)
async def test_a_key_is_admitted_while_one_token_is_left(paid: int, wait_s: float | None) -> None:
    own, limits = LocalCounters(lease_s=LEASE_S, clock_us=Clock(7)), Limits(tokens_per_minute=600)
    await own.leave("a", limits, "x", paid)
    entrance = await own.enter("a", limits, "x")
    assert (None if wait_s is None else Refusal("tokens_per_minute", wait_s)) == entrance.refusal
    assert (0.0, paid / 10) == (entrance.requests_full_in_s, entrance.tokens_full_in_s)


async def test_a_payment_counts_from_now_and_not_from_when_the_bucket_was_full() -> None:
    clock = Clock(7)
    own, limits = LocalCounters(lease_s=LEASE_S, clock_us=clock), Limits(requests_per_minute=60, tokens_per_minute=600)
    await own.enter("a", limits, "x")
    await own.leave("a", limits, "x", 10)
    clock.now_us += 10 * MINUTE_US
    entrance = await own.enter("a", limits, "y")
    assert (1.0, 0.0) == (entrance.requests_full_in_s, entrance.tokens_full_in_s)
    await own.leave("a", limits, "y", 10)
    assert 1.0 == (await own.enter("a", limits, "z")).tokens_full_in_s


async def test_requests_without_a_limit_are_not_counted() -> None:
    own = LocalCounters(lease_s=LEASE_S, clock_us=Clock(7))
    await own.enter("a", Limits(), "x")
    await own.leave("a", Limits(), "x", 1000)
    entrance = await own.enter("a", Limits(1, 1, 1), "x")
    assert (None, 60.0, 0.0) == (entrance.refusal, entrance.requests_full_in_s, entrance.tokens_full_in_s)


@pytest.mark.parametrize(("age_us", "free"), [(999_999, False), (1_000_000, True), (1_000_001, True)])
async def test_a_race_that_never_left_ends_with_its_lease(age_us: int, free: bool) -> None:
    clock = Clock(7)
    own, limits = LocalCounters(lease_s=1.0, clock_us=clock), Limits(races_in_flight=2)
    assert [None, None] == [await refusal_of(own, "a", limits, lease) for lease in ("lost", "lost too")]
    clock.now_us += age_us
    refused = await refusal_of(own, "a", limits, "next")
    assert (None if free else Refusal("races_in_flight", 1.0)) == refused


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        ([b"", 0, 1_500_000, 2_500_000], None),
        ([b"requests_per_minute", 1, 1_500_000, 2_500_000], Refusal("requests_per_minute", 1e-6)),
        ([b"tokens_per_minute", 2_000_000, 1_500_000, 2_500_000], Refusal("tokens_per_minute", 2.0)),
        ([b"races_in_flight", 0, 1_500_000, 2_500_000], Refusal("races_in_flight", 1.0)),
    ],
)
async def test_redis_replies_are_read_in_microseconds(reply: list[object], refusal: Refusal | None) -> None:
    entrance = await replying(reply).enter("a", Limits(1, 1, 1), "x")
    assert (refusal, 1.5, 2.5) == (entrance.refusal, entrance.requests_full_in_s, entrance.tokens_full_in_s)


@pytest.mark.parametrize(
    "reply",
    [
        [b"requests_per_minute", 0, 0, 0],
        [b"tokens_per_minute", 0, 0, 0],
        [b"tokens_per_minute", -1, 0, 0],
        [b"another", 5, 0, 0],
        [b"", 0, -1, 0],
        [b"", 0, 0, -1],
        [b"", 0, 0],
        None,
    ],
    ids=str,
)
async def test_a_malformed_reply_is_refused(reply: object) -> None:
    with pytest.raises(CountersUnavailable, match="a reply that makes no sense"):
        await replying(reply).enter("a", Limits(1, 1, 1), "x")


class ScriptedRedis:
    """Gives one reply to every script."""

    def __init__(self, reply: object) -> None:
        self.reply = reply

    def register_script(self, script: str) -> Any:
        async def run(*, keys: list[str], args: list[object]) -> object:
            assert ["test:limits:{a}:buckets", "test:limits:{a}:races"] == keys
            assert [1, 1, 1, "x", 30_000_000] == args
            return self.reply

        return run


def replying(reply: object) -> SharedCounters:
    redis: Any = ScriptedRedis(reply)
    return SharedCounters(redis, key_prefix="test", lease_s=LEASE_S)
