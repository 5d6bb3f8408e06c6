"""Pools by their URLs: made when needed, kept while in use, closed when no policy names them."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from functools import partial

import pytest

from gateway.backend.limit import ServerLimits
from gateway.backend.pool import BackendPool
from gateway.backend.pools import BackendPools, Urls
from gateway.errors import UnsupportedField
from gateway.settings import BackendSettings
from gateway.types import Prompt, Sampling
from tests.stubs.knobs import Knobs
from tests.stubs.tgi import TgiStub

PROMPT = Prompt([{"role": "user", "content": "hello"}], Sampling())


class Fleet:
    """Pools over two stubs; ``named`` are the URLs that the policy in force names."""

    def __init__(self, home: TgiStub, other: TgiStub) -> None:
        self.home, self.other = home, other
        self.named: list[Urls] = [()]
        self.pools = BackendPools(
            BackendSettings(urls=(home.url,)), lambda: self.named, partial(BackendPool, limits=ServerLimits())
        )


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with TgiStub(Knobs()) as home, TgiStub(Knobs()) as other:
        fleet = Fleet(home, other)
        yield fleet
        await fleet.pools.aclose()


async def test_the_capacity_is_the_sum_over_the_servers_in_force(fleet: Fleet) -> None:
    """A server that does not say how many draws it takes has room for all; one in two pools counts once."""
    ceiling = 1024
    assert (ceiling, math.inf) == (fleet.pools.capacity(), fleet.pools.total_capacity())  # none was asked yet
    fleet.home.knobs.update({"max_concurrent_requests": 6})
    fleet.other.knobs.update({"max_concurrent_requests": 5})
    await draw(fleet, ())
    assert (6, 6) == (fleet.pools.capacity(), fleet.pools.total_capacity())
    both = (fleet.home.url, fleet.other.url)
    fleet.named = [(), both]
    assert (6 + ceiling, math.inf) == (fleet.pools.capacity(), fleet.pools.total_capacity())
    with fleet.pools.lease(both) as pool:
        await pool.complete(PROMPT, seed=1, replica=1)
    assert (11, 11) == (fleet.pools.capacity(), fleet.pools.total_capacity())


async def test_the_capacity_is_known_before_the_first_draw(fleet: Fleet) -> None:
    """Otherwise several workers would each take all of it."""
    fleet.home.knobs.update({"max_concurrent_requests": 6})
    await fleet.pools.learn()
    assert (6, 6) == (fleet.pools.capacity(), fleet.pools.total_capacity())
    assert 0 == fleet.home.state.started


async def test_an_unreachable_server_is_asked_again_for_its_capacity(fleet: Fleet) -> None:
    fleet.home.knobs.update({"max_concurrent_requests": 6})
    await fleet.home.stop()
    await fleet.pools.learn()
    assert math.inf == fleet.pools.total_capacity()
    await fleet.home.start()
    await fleet.pools.learn()
    assert 6 == fleet.pools.total_capacity()


async def test_a_server_that_is_gone_has_no_capacity(fleet: Fleet) -> None:
    both = (fleet.home.url, fleet.other.url)
    fleet.named = [both]
    fleet.home.knobs.update({"max_concurrent_requests": 6})
    fleet.other.knobs.update({"max_concurrent_requests": 5})
    with fleet.pools.lease(both) as pool:
        for replica in (0, 1):
            await pool.complete(PROMPT, seed=1, replica=replica)
        await fleet.home.stop()
        await pool.complete(PROMPT, seed=1, replica=0)
    assert (5, 5) == (fleet.pools.capacity(), fleet.pools.total_capacity())


async def draw(fleet: Fleet, urls: Urls) -> None:
    with fleet.pools.lease(urls) as pool:
        await pool.complete(PROMPT, seed=1, replica=pool.choose_replica())


async def test_draws_go_to_the_replicas_of_their_own_urls(fleet: Fleet) -> None:
    """A policy that names none uses the settings'."""
    await draw(fleet, ())
    await draw(fleet, (fleet.other.url,))
    assert (1, 1) == (fleet.home.state.finished, fleet.other.state.finished)


async def test_the_same_urls_are_one_pool(fleet: Fleet) -> None:
    with fleet.pools.lease(()) as by_default, fleet.pools.lease((fleet.home.url,)) as by_name:
        assert by_default is by_name


async def test_running_races_are_counted_over_all_pools(fleet: Fleet) -> None:
    with fleet.pools.lease(()), fleet.pools.lease(()), fleet.pools.lease((fleet.other.url,)):
        assert 3 == fleet.pools.leased
    assert 0 == fleet.pools.leased


async def test_a_pool_that_no_policy_names_is_closed_once_its_races_are_over(fleet: Fleet) -> None:
    fleet.named = [(), (fleet.other.url,)]
    with fleet.pools.lease((fleet.other.url,)) as running:
        fleet.named = [()]
        await fleet.pools.close_unused()
        await running.complete(PROMPT, seed=1, replica=0)
    await fleet.pools.close_unused()
    with fleet.pools.lease((fleet.other.url,)) as anew:
        assert anew is not running


async def test_a_pool_that_is_named_stays(fleet: Fleet) -> None:
    fleet.named = [(), (fleet.other.url,)]
    with fleet.pools.lease((fleet.other.url,)) as pool:
        pass
    await fleet.pools.close_unused()
    with fleet.pools.lease((fleet.other.url,)) as again:
        assert again is pool


async def test_readiness_follows_the_stable_pool_and_reports_problems_of_the_other(fleet: Fleet) -> None:
    fleet.named = [(), ("http://127.0.0.1:9",)]
    found = await fleet.pools.readiness()
    assert (True, True) == (found.ready, "127.0.0.1:9" in found.detail)
    fleet.named.reverse()
    assert not (await fleet.pools.readiness()).ready


async def test_a_kind_of_backend_refuses_what_it_cannot_serve(fleet: Fleet) -> None:
    with pytest.raises(UnsupportedField):
        fleet.pools.check(Sampling(logit_bias={"1": 1.0}))
