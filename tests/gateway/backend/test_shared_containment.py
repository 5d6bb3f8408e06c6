"""Gateways share through a real Redis which requests broke servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

import pytest

from gateway.backend.containment import Containment
from gateway.backend.shared_containment import SharedContainment
from gateway.errors import RequestContained
from gateway.settings import RedisSettings
from tests.gateway.backend.conftest import prompt
from tests.redis_server import RedisServer
from tests.waiting import until

Start = Callable[[], Containment]


@pytest.fixture
async def start(redis_server: RedisServer, redis_settings: RedisSettings) -> AsyncIterator[Start]:
    """Return a function that starts one more gateway's containment."""
    async with AsyncExitStack() as stack:

        def one() -> Containment:
            containment = Containment()
            shared = SharedContainment(containment, redis_settings)
            shared.start()
            stack.push_async_callback(shared.aclose)
            return containment

        yield one


def contained(containment: Containment, request: str) -> bool:
    try:
        containment.admit(request)
    except RequestContained:
        return True
    return False


async def same_salt(*gateways: Containment) -> None:
    """Return once all have the salt in Redis."""
    own = {gateway.salt for gateway in gateways}
    await until(lambda: len({gateway.salt for gateway in gateways}) == 1)
    assert gateways[0].salt in own


async def test_a_request_contained_at_one_gateway_is_contained_at_all(start: Start) -> None:
    here, there = start(), start()
    await same_salt(here, there)
    request = here.fingerprint(prompt())
    here.broke(request, "a:1")
    await until(lambda: not there.idle)
    with pytest.raises(RequestContained):
        there.broke(request, "b:2")
    await until(lambda: contained(here, request))
    here.answered(request)
    await until(lambda: there.idle)


async def test_a_restarted_gateway_reads_the_last_minute(start: Start) -> None:
    here, other = start(), start()
    await same_salt(here, other)
    request = here.fingerprint(prompt())
    here.broke(request, "a:1")
    with pytest.raises(RequestContained):
        here.broke(request, "b:2")
    await until(lambda: contained(other, request))
    later = start()
    await until(lambda: contained(later, later.fingerprint(prompt())))


async def test_redis_holds_no_content_and_expires_it(start: Start, redis_server: RedisServer) -> None:
    here = start()
    there = start()
    await same_salt(here, there)
    here.broke(here.fingerprint(prompt("a secret")), "a:1")
    await until(lambda: not there.idle)
    with redis_server.client() as redis:
        [stream] = redis.keys("*:contained")
        assert b"secret" not in repr(redis.xrange(stream)).encode()
        assert 0 < redis.ttl(stream) <= 120


async def test_without_redis_each_gateway_contains_by_itself(start: Start, redis_server: RedisServer) -> None:
    here = start()
    redis_server.kill()
    here.broke("r", "a:1")
    with pytest.raises(RequestContained):
        here.broke("r", "b:2")


async def test_events_are_shared_again_after_an_outage_of_redis(start: Start, redis_server: RedisServer) -> None:
    here, there = start(), start()
    await same_salt(here, there)
    redis_server.kill()
    redis_server.start()
    await same_salt(here, there)

    def told() -> bool:
        here.publish("broke", "r", "a:1")
        return not there.idle

    await until(told)
