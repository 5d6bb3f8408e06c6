"""A name stands for all its addresses, and the pool follows it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.backend import pool as pool_module
from gateway.backend.discovery import expand
from gateway.errors import BackendUnreachable
from gateway.settings import BackendSettings
from tests.gateway.backend.conftest import PoolOf, prompt
from tests.stubs.tgi import TgiStub
from tests.waiting import until


class Names:
    """A resolver whose answers a test sets."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    return names


async def test_a_name_becomes_a_url_for_each_address(names: Names) -> None:
    names.addresses = ["10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1"]
    assert ("http://x:1", "http://u:p@10.0.0.1:80/v1", "http://u:p@10.0.0.2:80/v1", "http://u:p@[fd00::1]:80/v1") == (
        await expand(["http://x:1", "dns+http://u:p@tgi/v1"])
    )


async def test_a_name_that_cannot_be_resolved_keeps_its_last_addresses(names: Names) -> None:
    assert ("http://10.0.0.1:80",) == await expand(["dns+http://tgi:80"], ["http://10.0.0.1:80"])


async def test_replicas_follow_the_name_and_running_draws_finish(
    stub: TgiStub, pool_of: PoolOf, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "_RESOLVE_EVERY_S", 0.0)
    port = stub.url.rpartition(":")[2]
    pool = pool_of(f"dns+http://tgi:{port}")
    with pytest.raises(BackendUnreachable, match="name"):
        await pool.complete(prompt(), seed=1, replica=pool.choose_replica())
    assert not (await pool.readiness()).ready
    names.addresses = ["127.0.0.1"]
    assert (await pool.readiness()).ready
    stub.knobs.update({"latency_ms": 500.0})
    draw = asyncio.create_task(pool.complete(prompt(), seed=1, replica=pool.choose_replica()))
    await stub.state.until(lambda state: state.generating == 1)
    (first,) = pool._replicas.all
    names.addresses = ["127.0.0.2", "127.0.0.3"]

    def followed() -> bool:
        pool.tend()
        return len(pool._replicas.all) == 2

    await until(followed)
    assert first not in pool._replicas.all
    assert (await draw).text
    names.addresses = ["127.0.0.3", "127.0.0.4"]
    kept = pool._replicas.all[1]

    def changed() -> bool:
        pool.tend()
        return pool._replicas.all[0] is kept

    await until(changed)


@pytest.mark.parametrize("url", ["dns+https://tgi", "dns+tgi:80", "dns+http://", "dns+dns+http://tgi"])
def test_a_malformed_name_is_refused(url: str) -> None:
    """TLS would need the name, which the address no longer has."""
    with pytest.raises(ValidationError):
        BackendSettings(urls=(url,))


def test_a_name_is_a_valid_url_of_a_backend() -> None:
    assert ("dns+http://tgi:80",) == BackendSettings(urls=("dns+http://tgi:80/",)).urls
