"""The policy store: it follows Redis while it runs, and never falls behind the last known good policy."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from gateway.errors import PolicyError, SettingsError
from gateway.policy import Policy, PolicyStore
from gateway.settings import PolicySettings, RedisSettings, Settings
from tests.redis_server import RedisServer
from tests.waiting import until

KEY = "ratchet:policy"
MakeStore = Callable[..., PolicyStore]


@pytest.fixture
async def make_store(tmp_path: Path, redis_settings: RedisSettings) -> AsyncIterator[MakeStore]:
    """Makes stores that share a folder, as workers do; closed after the test."""
    stores: list[PolicyStore] = []

    def make(redis: RedisSettings = redis_settings, folder: Path = tmp_path, **settings: Any) -> PolicyStore:
        asked = PolicySettings.model_validate({"refresh_s": 0.01} | settings)
        stores.append(PolicyStore(asked, redis, folder=folder, n_limit=16))
        return stores[-1]

    yield make
    for store in stores:
        await store.aclose()


def put(server: RedisServer, document: str) -> None:
    with server.client() as client:
        client.set(KEY, document)


def test_a_connection_that_closes_while_it_is_used_does_not_end_the_refresh(
    redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uvloop raises a RuntimeError when such a connection is written to; the next refresh connects again."""

    async def refreshed() -> tuple[str | None, str | None, int]:
        store = PolicyStore(PolicySettings(refresh_s=60), redis_settings, folder=tmp_path, n_limit=16)
        await store.start()
        pool: Any = store._published._redis.connection_pool
        looked_at = pool.ensure_connection

        async def closes(connection: Any) -> None:
            await looked_at(connection)
            connection._writer.transport.abort()
            await asyncio.sleep(0.01)

        with monkeypatch.context() as closing:
            closing.setattr(pool, "ensure_connection", closes)
            await store.refresh()
        broken = store.last_error
        put(redis_server, Policy(version=3, n=2, n_max=4).model_dump_json())
        await store.refresh()
        await store.aclose()
        return broken, store.last_error, store.current.version

    assert ("RuntimeError", None, 3) == uvloop.run(refreshed())


async def test_a_refresh_loop_that_dies_is_logged_and_reported(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    await store.start()

    async def unforeseen() -> bytes:
        raise ArithmeticError

    monkeypatch.setattr(store._published._redis, "info", unforeseen)
    with capture_logs() as logs:
        await until(lambda: store.last_error == "ArithmeticError")
    assert ["policy_refresh_died"] == [line["event"] for line in logs if line["log_level"] == "critical"]
    assert "policy not refreshed: ArithmeticError" == (await store.readiness()).detail


async def test_without_a_document_the_settings_are_the_policy(make_store: MakeStore, redis_server: RedisServer) -> None:
    """Nothing is written to Redis or disk."""
    store = make_store(n=3)
    await store.start()
    assert (0, 3, "settings") == (store.current.version, store.current.n, store.source)
    with redis_server.client() as client:
        assert 0 == client.dbsize()


async def test_an_opened_store_takes_folder_and_limit_from_the_settings(
    redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    """Without Redis it continues from the policy on disk, so that versions do not start again."""
    settings = Settings.model_validate({"redis": redis_settings, "journal": {"spool_dir": tmp_path}})
    async with PolicyStore.opened(settings) as store:
        await store.publish(store.current.successor(n=2, reason="good"))
        with pytest.raises(PolicyError, match="limit of 16"):
            await store.publish(store.current.successor(n_max=17, reason=""))
    redis_server.kill()
    async with PolicyStore.opened(settings) as store:
        assert ("good", "disk") == (store.current.reason, store.source)
    async with PolicyStore.opened(settings, folder=tmp_path / "elsewhere") as store:
        assert "settings" == store.source


async def test_a_published_policy_reaches_every_running_gateway(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    """The publisher has it at once, the others at their next refresh."""
    publisher, gateway = make_store(), make_store()
    await publisher.start()
    await gateway.start()
    policy = publisher.current.successor(n=2, adapter="rft-1", reason="gate passed")
    await publisher.publish(policy)
    assert policy == publisher.current
    await until(lambda: gateway.current == policy)
    assert "redis" == gateway.source
    assert {"version": 1, "source": "redis", "n": 2} == (await gateway.readiness()).facts


async def test_versions_rise_by_one(make_store: MakeStore, redis_server: RedisServer) -> None:
    """A policy prepared from an outdated one is refused."""
    store, late = make_store(), make_store()
    await store.publish(store.current.successor(reason="first"))
    for version in (0, 1, 3):
        with pytest.raises(PolicyError, match=f"version {version} does not follow the published version 1"):
            await late.publish(store.current.model_copy(update={"version": version}))
    await late.publish(store.current.successor(reason="second"))
    assert ["second", "first"] == [policy.reason for policy in await store.history()]
    assert ["second"] == [policy.reason for policy in await store.history(limit=1)]


async def test_of_many_concurrent_writers_one_wins_each_version(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    """No writer overwrites another, in any order."""
    stores = [make_store() for _ in range(10)]
    results = await asyncio.gather(
        *(store.publish(store.current.successor(reason=str(i))) for i, store in enumerate(stores)),
        return_exceptions=True,
    )
    won = [str(i) for i, result in enumerate(results) if result is None]
    assert 9 == sum(isinstance(result, PolicyError) for result in results)
    assert won == [policy.reason for policy in await stores[0].history()]


async def test_a_write_between_reading_and_writing_is_noticed(
    make_store: MakeStore, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slower of two writers must read again."""
    store = make_store()
    policy = store.current.successor(reason="slow")

    def overtaken(document: bytes | str) -> Policy:
        put(redis_server, policy.model_copy(update={"reason": "fast"}).model_dump_json())
        return store.current

    put(redis_server, store.current.model_dump_json())
    monkeypatch.setattr("gateway.policy.published._parse", overtaken)
    with pytest.raises(PolicyError, match="at the same time"):
        await store.publish(policy)
    await store.refresh()
    assert "fast" == store.current.reason


async def test_a_policy_beyond_the_limit_is_not_published(make_store: MakeStore, redis_server: RedisServer) -> None:
    """No gateway could serve it."""
    store = make_store()
    with pytest.raises(PolicyError, match="n_max: 17 is over this gateway's limit of 16"):
        await store.publish(store.current.successor(n_max=17, reason=""))


@pytest.mark.parametrize(
    "document",
    ["", "{", "null", '{"version": 2}', '{"version": 2, "n": 99, "n_max": 99}', '{"version": 2, "n": "x", "n_max": 1}'],
)
async def test_a_bad_document_is_refused_and_the_last_good_one_stays(
    make_store: MakeStore, redis_server: RedisServer, document: str
) -> None:
    """Readiness reports it until a good one replaces it."""
    store = make_store()
    await store.publish(store.current.successor(n=2, reason="good"))
    put(redis_server, document)
    for _ in range(2):
        await store.refresh()
    assert "good" == store.current.reason
    assert "policy not refreshed: PolicyError" == (await store.readiness()).detail
    put(redis_server, store.current.successor(reason="mended").model_dump_json())
    await store.refresh()
    assert ("mended", "") == (store.current.reason, (await store.readiness()).detail)


async def test_a_bad_document_can_be_replaced(make_store: MakeStore, redis_server: RedisServer) -> None:
    """Versions continue from the last good one."""
    store = make_store()
    await store.publish(store.current.successor(reason="good"))
    put(redis_server, "garbage")
    await store.publish(store.current.successor(reason="mended"))
    with redis_server.client() as client:
        client.lpush(f"{KEY}:history", "garbage")
    assert [2, 1] == [policy.version for policy in await store.history()]


async def test_without_redis_the_last_known_good_comes_from_disk(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    """A restart during an outage serves the same policy as before."""
    store = make_store()
    policy = store.current.successor(n=2, reason="good")
    await store.publish(policy)
    redis_server.kill()
    restarted = make_store()
    await restarted.start()
    assert (policy, "disk") == (restarted.current, restarted.source)
    readiness = await restarted.readiness()
    assert (True, "policy not refreshed: ConnectionError") == (readiness.ready, readiness.detail)
    redis_server.start()
    await until(lambda: restarted.last_error is None)


async def test_an_outage_changes_nothing_and_ends_by_itself(
    make_store: MakeStore, redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    """Requests read the policy from memory."""
    store = make_store(redis=redis_settings.model_copy(update={"timeout_s": 0.5}))
    await store.start()
    policy = store.current.successor(n=2, reason="good")
    await store.publish(policy)
    redis_server.pause()
    await until(lambda: store.last_error == "TimeoutError")
    assert policy == store.current
    redis_server.resume()
    await until(lambda: store.last_error is None)


async def test_a_redis_that_lost_the_document_gets_it_back(make_store: MakeStore, redis_server: RedisServer) -> None:
    """Versions never start again, and other gateways read the same document."""
    store = make_store()
    await store.publish(store.current.successor(n=2, reason="good"))
    redis_server.restart(empty=True)
    await store.refresh()  # the old connection is broken
    await store.refresh()
    other = make_store(folder=Path("/nonexistent"))
    await other.refresh()
    assert store.current == other.current
    assert "does not follow" in str((await asyncio.gather(other.publish(store.current), return_exceptions=True))[0])


async def test_closing_ends_even_if_a_cancellation_is_swallowed(
    make_store: MakeStore, stopped_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio.wait_for, which redis-py uses, can do that before Python 3.12."""
    entered = asyncio.Event()

    async def swallow() -> None:
        entered.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    store = make_store()
    await store.start()
    monkeypatch.setattr(store._published._redis, "info", swallow)
    await entered.wait()
    async with asyncio.timeout(30):
        await store.aclose()


async def test_a_damaged_file_is_ignored(
    make_store: MakeStore, stopped_redis_server: RedisServer, tmp_path: Path
) -> None:
    """The settings are the policy then."""
    (tmp_path / "policy.json").write_bytes(b"\xff{")
    store = make_store(n=3)
    await store.start()
    assert (3, "settings") == (store.current.n, store.source)


async def test_a_folder_that_cannot_be_written_is_no_failure(
    make_store: MakeStore, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The policy is current in memory; the log says that it is not saved."""
    (tmp_path / "file").touch()
    store = make_store(folder=tmp_path / "file")
    await store.start()
    with capture_logs() as logs:
        await store.publish(store.current.successor(n=2, reason="good"))
    assert 2 == store.current.n
    assert ["policy_not_saved"] == [line["event"] for line in logs if line["log_level"] == "error"]


async def test_no_draft_stays_beside_the_file(make_store: MakeStore, redis_server: RedisServer, tmp_path: Path) -> None:
    """The file is replaced in one step."""
    store = make_store()
    await store.publish(store.current.successor(reason="good"))
    assert ["policy.json"] == os.listdir(tmp_path)


async def test_without_redis_publishing_and_history_are_policy_errors(
    make_store: MakeStore, stopped_redis_server: RedisServer
) -> None:
    """One kind of error for the command line."""
    store = make_store()
    with pytest.raises(PolicyError, match="not published: Redis said ConnectionError"):
        await store.publish(store.current.successor(reason=""))
    with pytest.raises(PolicyError, match="no history: Redis said ConnectionError"):
        await store.history()


async def test_a_full_redis_takes_a_policy(make_store: MakeStore, redis_server: RedisServer) -> None:
    """A rollback must not wait for memory; versions still rise by one."""
    store, other = make_store(), make_store()
    await store.publish(store.current.successor(reason="before", n=5))
    await other.refresh()
    redis_server.fill()
    await store.publish(store.current.successor(reason="full", n=2))
    with pytest.raises(PolicyError, match="version 2 does not follow the published version 2"):
        await other.publish(other.current.successor(reason="late"))
    assert ["full", "before"] == [policy.reason for policy in await other.history()]
    await other.refresh()
    assert (2, 2) == (other.current.version, other.current.n)


async def test_a_full_redis_takes_one_of_two_concurrent_policies(
    make_store: MakeStore, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one fails, as in a Redis with free memory."""
    store = make_store()
    redis_server.fill()
    through = store._published._publish_when_full

    async def overtaken(found: bytes | str | None, document: str) -> None:
        await through(found, store.current.successor(reason="first").model_dump_json())
        await through(found, document)

    monkeypatch.setattr(store._published, "_publish_when_full", overtaken)
    with pytest.raises(PolicyError, match="another policy was published at the same time"):
        await store.publish(store.current.successor(reason="second"))
    assert ["first"] == [policy.reason for policy in await store.history()]


async def test_a_full_redis_that_lost_the_document_gets_it_back(
    make_store: MakeStore, redis_server: RedisServer
) -> None:
    store = make_store()
    await store.publish(store.current.successor(reason="good", n=3))
    redis_server.restart(empty=True)
    redis_server.fill()
    await store.refresh()  # over the old connection, which the restart broke
    await store.refresh()
    assert store.last_error is None
    again = make_store()
    await again.refresh()
    assert (1, 3) == (again.current.version, again.current.n)


async def test_a_cluster_is_refused_with_its_setting(make_store: MakeStore, stopped_redis_server: RedisServer) -> None:
    """At the start, and later if another Redis answers at the same address."""
    stopped_redis_server.start(cluster_enabled="yes", cluster_config_file="nodes.conf")
    store = make_store()
    with pytest.raises(SettingsError, match="GATEWAY_REDIS__URL leads to a node of a Redis Cluster"):
        await store.start()
    await store.refresh()
    assert "policy not refreshed: UnsupportedRedis" == (await store.readiness()).detail
