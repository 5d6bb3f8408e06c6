"""A key's limits over HTTP: refusals and their waits, a Redis that is away, and no leaks."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from gateway.api.counters import CountersUnavailable, Entrance, Refusal
from gateway.api.keyfile import Key, Limits, new_key
from gateway.api.limits import Limiter, limit_headers, longest_visit_s
from gateway.errors import RateLimited
from gateway.settings import Settings
from tests.redis_server import RedisServer
from tests.serving import Serve, Served
from tests.stubs.knobs import Knobs


async def served_with(serve: Serve, folder: Path, tgi: Knobs | None = None, **limits: int) -> tuple[Served, Any]:
    """A gateway with one limited key, and the header that sends it."""
    key, line = new_key("app", limits=limits)
    (folder / "keys").write_text(line)
    return await serve(tgi, api={"keys_file": folder / "keys"}), {"Authorization": f"Bearer {key}"}


async def races(served: Served) -> int:
    """Return the races in flight, as Redis counts them."""
    async with Redis.from_url(served.settings.redis.url) as redis:
        return sum([await redis.zcard(key) for key in await redis.keys("ratchet:limits:*:races")])


async def test_one_request_over_the_limit_is_a_429_with_the_time_to_wait(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served, bearer = await served_with(serve, tmp_path, requests_per_minute=2)
    answers = [await served.chat(best_of=1, headers=bearer) for _ in range(3)]
    assert [200, 200, 429] == [answer.status_code for answer in answers]
    error = answers[2].json()["error"]
    assert ("rate_limit_error", "rate_limit_exceeded") == (error["type"], error["code"])
    assert "this API key has reached its limit of 2 requests a minute" == error["message"]
    wait_s, wait_ms = (answers[2].headers[name] for name in ("retry-after", "retry-after-ms"))
    assert 0 < int(wait_ms) <= 30_000
    assert -(-int(wait_ms) // 1000) == int(wait_s)
    rated = await served.http.post("/v1/feedback", json={"id": answers[0].json()["id"], "rating": 1}, headers=bearer)
    assert 429 == rated.status_code
    assert 2 == len(served.tgi.state.requests)


async def test_a_race_pays_for_every_token_drawn_and_for_its_prompt(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served, bearer = await served_with(serve, tmp_path, tokens_per_minute=60)
    body = (await served.chat(best_of=3, headers=bearer)).json()
    cost = body["usage"]["prompt_tokens"] + body["best_of_n"]["generated_tokens"]
    async with Redis.from_url(served.settings.redis.url) as redis, asyncio.timeout(20):
        while not (keys := await redis.keys("ratchet:limits:*:buckets")):
            await asyncio.sleep(0.01)
        full_at = int(await redis.hget(keys[0], "tokens_per_minute") or 0)
        seconds, microseconds = await redis.time()
    used = (full_at - seconds * 1_000_000 - microseconds) / 1e6
    assert cost - 5 < used <= cost  # a token a second is refilled
    assert cost > body["usage"]["total_tokens"] > body["usage"]["prompt_tokens"] + 5


def left(answer: httpx2.Response, name: str) -> tuple[str | None, ...]:
    return tuple(answer.headers.get(f"x-ratelimit-{part}-{name}") for part in ("limit", "remaining", "reset"))


async def test_what_is_left_is_in_openais_headers(serve: Serve, redis_server: RedisServer, tmp_path: Path) -> None:
    served, bearer = await served_with(serve, tmp_path, requests_per_minute=3, tokens_per_minute=600)
    first = await served.chat(best_of=2, headers=bearer)
    body = first.json()
    cost = body["usage"]["prompt_tokens"] + body["best_of_n"]["generated_tokens"]
    assert ("3", "2", "20s") == left(first, "requests")
    assert ("600", str(600 - cost)) == left(first, "tokens")[:2]
    assert cost / 10 <= seconds_of(left(first, "tokens")[2]) <= cost / 10 + 0.01
    streamed = await served.chat(best_of=1, stream=True, headers=bearer)
    assert ("3", "1") == left(streamed, "requests")[:2]
    wrong = await served.chat(temperature=9, headers=bearer)
    assert (400, "0") == (wrong.status_code, left(wrong, "requests")[1])
    refused = await served.chat(headers=bearer)
    assert (429, "3", "0") == (refused.status_code, *left(refused, "requests")[:2])
    assert 40 < seconds_of(left(refused, "requests")[2]) <= 60
    assert 0 < int(left(refused, "tokens")[1] or 0) < 600 - cost + 60
    rated = await served.http.post("/v1/feedback", json={"id": body["id"], "rating": 1}, headers=bearer)
    assert (429, "0", None) == (rated.status_code, left(rated, "requests")[1], left(rated, "tokens")[0])


def seconds_of(reset: str | None) -> float:
    """Return the seconds that OpenAI's clients read from ``1m8.64s`` or ``17ms``."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:([\d.]+)s)?|(\d+)ms", reset or "")
    assert found is not None, reset
    hours, minutes, seconds, ms = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds + ms / 1e3


async def test_a_key_without_limits_per_minute_gets_no_such_headers(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    for limits in ({}, {"races_in_flight": 5}):
        served, bearer = await served_with(serve, tmp_path, None, **limits)
        answer = await served.chat(best_of=1, headers=bearer)
        assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("full_in_s", "tokens", "remaining", "reset"),
    [
        (0.0, 0, "600", "0s"),
        (0.0, 1, "599", "100ms"),
        (0.0, 599, "1", "59.9s"),
        (0.0, 600, "0", "1m0s"),
        (0.0, 601, "0", "1m0.1s"),
        (0.017, 0, "599", "17ms"),
        (0.9991, 0, "590", "1s"),
        (8.64, 0, "513", "8.64s"),
        (59.9999, 0, "0", "1m0s"),
        (360.0, 0, "0", "6m0s"),
        (3600.0, 0, "0", "1h0m0s"),
        (3661.5, 0, "0", "1h1m1.5s"),
    ],
)
def test_remaining_and_reset_are_those_of_the_bucket(full_in_s: float, tokens: int, remaining: str, reset: str) -> None:
    headers = limit_headers(Limits(tokens_per_minute=600), Entrance(None, 0.0, full_in_s), tokens)
    assert {
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": remaining,
        "x-ratelimit-reset-tokens": reset,
    } == headers


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 190.0),  # 30 for the body, twice 5 in the queue, 60 of drawing and 10 for rewards, and a margin of 10
        ({"api": {"body_timeout_s": 31}}, 191.0),
        ({"race": {"queue_timeout_s": 6}}, 192.0),
        ({"race": {"deadline_s": 61}}, 192.0),
        ({"reward": {"timeout_s": 11}}, 192.0),
    ],
)
def test_a_lease_is_longer_than_any_race(changes: dict[str, Any], expected: float) -> None:
    assert expected == longest_visit_s(Settings.model_validate(changes))


async def test_a_key_in_debt_for_tokens_waits(serve: Serve, redis_server: RedisServer, tmp_path: Path) -> None:
    served, bearer = await served_with(serve, tmp_path, tokens_per_minute=1)
    assert 200 == (await served.chat(best_of=2, headers=bearer)).status_code
    async with asyncio.timeout(20):  # it is paid after the answer has left
        while (answer := await served.chat(best_of=2, headers=bearer)).status_code == 200:
            pass
    assert 429 == answer.status_code
    assert int(answer.headers["retry-after"]) > 60


async def test_streams_and_whole_answers_count_as_races_in_flight(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served, bearer = await served_with(serve, tmp_path, Knobs(tokens_per_s=5), races_in_flight=2)
    running = [asyncio.create_task(served.chat(best_of=1, stream=bool(index), headers=bearer)) for index in range(2)]
    await served.tgi.state.until(lambda state: state.generating == 2)
    assert 2 == await races(served)
    refused = await served.chat(best_of=1, headers=bearer)
    assert (429, "1") == (refused.status_code, refused.headers["retry-after"])
    for task in running:
        task.cancel()
    async with asyncio.timeout(20):
        while await races(served):
            await asyncio.sleep(0.01)


async def test_a_race_is_no_longer_in_flight_however_its_request_ends(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served, bearer = await served_with(serve, tmp_path, races_in_flight=1)
    cases: list[dict[str, Any]] = [
        {"best_of": 2},
        {"best_of": 2, "stream": True},
        {"best_of": 1, "stream": True},
        {"temperature": 9},
        {"model": "unknown"},
        {"best_of": 999, "stream": True},
    ]
    for fields in cases:
        assert 429 != (await served.chat(**fields, headers=bearer)).status_code
        async with asyncio.timeout(20):
            while await races(served):
                await asyncio.sleep(0.01)


async def test_without_redis_each_gateway_counts_alone_and_with_it_together_again(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served, bearer = await served_with(serve, tmp_path, requests_per_minute=3)
    assert 200 == (await served.chat(best_of=1, headers=bearer)).status_code
    redis_server.kill()
    alone = [(await served.chat(best_of=1, headers=bearer)).status_code for _ in range(4)]
    assert [200, 200, 200, 429] == alone
    redis_server.start()
    async with asyncio.timeout(20):
        while (await served.chat(best_of=1, headers=bearer)).status_code != 200:
            await asyncio.sleep(0.1)
    async with Redis.from_url(served.settings.redis.url) as redis:
        assert await redis.keys("ratchet:limits:*:buckets")


async def test_a_key_without_limits_costs_redis_nothing(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served, bearer = await served_with(serve, tmp_path)
    assert 200 == (await served.chat(best_of=1, headers=bearer)).status_code
    await served.records(1)
    async with Redis.from_url(served.settings.redis.url) as redis:
        statistics = await redis.info("commandstats")
        assert [] == await redis.keys("ratchet:limits:*")
        assert not [name for name in statistics if "eval" in name or "script" in name]


class FakeCounters:
    """Records its calls; while ``lost`` is true it raises as if Redis were away."""

    def __init__(self) -> None:
        self.lost = False
        self.entered: list[tuple[str, Limits]] = []
        self.left: list[tuple[str, Limits, int]] = []
        self.refusal: Refusal | None = None

    async def enter(self, key_id: str, limits: Limits, lease: str) -> Entrance:
        if self.lost:
            raise CountersUnavailable("TimeoutError")
        self.entered.append((key_id, limits))
        return Entrance(self.refusal, 1.0, 2.0)

    async def leave(self, key_id: str, limits: Limits, lease: str, tokens: int) -> None:
        if self.lost:
            raise CountersUnavailable("TimeoutError")
        self.left.append((key_id, limits, tokens))


class Clock:
    now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def limiter_over(shared: FakeCounters, own: FakeCounters, clock: Clock) -> Limiter:
    limiter = Limiter(Settings(), clock=clock)
    counters: Any = limiter
    counters._shared, counters._own = shared, own
    return limiter


KEY = Key("app", bytes(32), limits=Limits(60, 600, 2))


async def test_redis_is_asked_again_a_second_after_it_was_away() -> None:
    shared, own, clock = FakeCounters(), FakeCounters(), Clock()
    limiter = limiter_over(shared, own, clock)
    await limiter.enter(KEY, race=True)
    assert (1, 0) == (len(shared.entered), len(own.entered))
    shared.lost = True
    await limiter.enter(KEY, race=True)
    assert [(KEY.id, KEY.limits)] == shared.entered == own.entered
    shared.lost = False
    clock.now_s += 0.99
    await limiter.enter(KEY, race=True)
    assert (1, 2) == (len(shared.entered), len(own.entered))
    clock.now_s += 0.01
    await limiter.enter(KEY, race=True)
    assert (2, 2) == (len(shared.entered), len(own.entered))
    await limiter.aclose()


async def test_each_loss_of_redis_and_each_return_is_logged_once() -> None:
    shared, clock = FakeCounters(), Clock()
    limiter = limiter_over(shared, FakeCounters(), clock)
    with capture_logs() as logged:
        for lost in (False, True, True, False, False, True, False):
            shared.lost = lost
            await limiter.enter(KEY, race=True)
            clock.now_s += 1.0
    away, back = ("limits_not_shared", "TimeoutError"), ("limits_shared_again", None)
    assert [away, back, away, back] == [(event["event"], event.get("error")) for event in logged]
    await limiter.aclose()


async def test_a_race_is_paid_where_it_was_counted_or_here_if_redis_is_away() -> None:
    shared, own, clock = FakeCounters(), FakeCounters(), Clock()
    limiter = limiter_over(shared, own, clock)
    first, second = [await limiter.enter(KEY, race=True) for _ in range(2)]
    first.cost_tokens, second.cost_tokens = lambda: 70, lambda: 80
    first.leave()
    first.leave()
    await asyncio.sleep(0)
    assert ([(KEY.id, KEY.limits, 70)], []) == (shared.left, own.left)
    await asyncio.sleep(0)
    assert set() == limiter._leaving
    shared.lost = True
    second.leave()
    await limiter.aclose()
    assert (1, [(KEY.id, KEY.limits, 80)]) == (len(shared.left), own.left)
    await limiter.enter(KEY, race=True)
    assert 1 == len(own.entered), "for a second this process counts alone"


@pytest.mark.parametrize(
    ("key", "race", "counted", "pays"),
    [
        (KEY, True, Limits(60, 600, 2), True),
        (KEY, False, Limits(60, 0, 0), False),
        (Key("b", bytes(32), limits=Limits(60, 0, 0)), True, Limits(60, 0, 0), False),
        (Key("b", bytes(32), limits=Limits(0, 600, 0)), True, Limits(0, 600, 0), True),
        (Key("b", bytes(32), limits=Limits(0, 0, 2)), True, Limits(0, 0, 2), True),
        (Key("b", bytes(32), limits=Limits(0, 600, 2)), False, None, False),
        (Key("b", bytes(32)), True, None, False),
        (None, True, None, False),
    ],
)
async def test_only_races_count_as_in_flight_and_pay_tokens(
    key: Key | None, race: bool, counted: Limits | None, pays: bool
) -> None:
    shared = FakeCounters()
    limiter = limiter_over(shared, FakeCounters(), Clock())
    visit = await limiter.enter(key, race=race)
    assert ([] if counted is None else [counted]) == [limits for _, limits in shared.entered]
    assert pays == (visit.on_leave is not None)
    assert (None if counted is None else Entrance(None, 1.0, 2.0)) == visit.entrance
    if counted is not None and counted.requests_per_minute:
        assert ("60", "59", "1s") == tuple(
            visit.headers()[f"x-ratelimit-{part}-requests"] for part in ("limit", "remaining", "reset")
        )
    await limiter.aclose()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("requests_per_minute", "60 requests a minute"),
        ("tokens_per_minute", "600 tokens a minute"),
        ("races_in_flight", "2 requests at once"),
    ],
)
async def test_a_refusal_names_its_limit_its_wait_and_what_is_left(limit: Any, words: str) -> None:
    shared = FakeCounters()
    shared.refusal = Refusal(limit, 3.5)
    limiter = limiter_over(shared, FakeCounters(), Clock())
    with pytest.raises(RateLimited, match=f"this API key has reached its limit of {words}$") as refused:
        await limiter.enter(KEY, race=True)
    assert 3.5 == refused.value.retry_after_s
    assert limit_headers(KEY.limits, Entrance(None, 1.0, 2.0)) == refused.value.headers
    await limiter.aclose()
