"""A Redis Cluster's node and a Sentinel are refused by every part; a Redis that is away is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import redis

from distill.dataset.collect import collect
from distill.settings import DatasetSettings
from gateway.embedded.redis import binary_path
from gateway.errors import SettingsError
from gateway.journal.writer import Journal
from gateway.processes.child import free_port
from gateway.redis_client import UnsupportedRedis, check_redis, refuse_modes
from gateway.settings import JournalSettings, RedisSettings
from tests.gateway.journal.records import completion
from tests.redis_server import RedisServer
from tests.waiting import until

CLUSTER = {"cluster_enabled": "yes", "cluster_config_file": "nodes.conf"}


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({}, None),
        ({"redis_mode": "standalone", "cluster_enabled": 0}, None),
        ({"server_mode": "standalone", "cluster_enabled": "0"}, None),
        ({"redis_mode": "cluster"}, "a node of a Redis Cluster"),
        ({"server_mode": "cluster"}, "a node of a Redis Cluster"),
        ({"redis_mode": "standalone", "cluster_enabled": 1}, "a node of a Redis Cluster"),
        ({"cluster_enabled": "1"}, "a node of a Redis Cluster"),
        ({"redis_mode": "sentinel"}, "a Redis Sentinel"),
        ({"server_mode": "sentinel"}, "a Redis Sentinel"),
    ],
)
def test_the_kind_of_redis_is_known_by_its_info(info: Mapping[str, object], said: str | None) -> None:
    """INFO of Redis and Valkey, parsed or as text."""
    if said is None:
        refuse_modes(info)
        return
    with pytest.raises(UnsupportedRedis, match=f"GATEWAY_REDIS__URL leads to {said}, which is not supported"):
        refuse_modes(info)


async def test_a_node_of_a_cluster_is_refused_by_everyone(
    stopped_redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    """Even if that node holds every key. Records stay in the spool."""
    stopped_redis_server.start(**CLUSTER)
    with stopped_redis_server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    with pytest.raises(SettingsError, match="a node of a Redis Cluster"):
        await check_redis(redis_settings)
    with pytest.raises(SettingsError, match="a node of a Redis Cluster"):
        await collect(redis_settings, DatasetSettings(archive_dir=tmp_path / "archive"))
    journal = Journal(JournalSettings(spool_dir=tmp_path / "spool"), redis_settings)
    await journal.start()
    try:
        assert await journal.append(completion())
        await until(lambda: journal.stats.last_error == "UnsupportedRedis")
        assert "this Redis is a Cluster's or a Sentinel, which is not supported" in (await journal.readiness()).detail
        assert 1 == journal.stats.lag_records
    finally:
        await journal.aclose(drain_s=0)


@pytest.fixture
def sentinel_port(tmp_path: Path) -> Iterator[int]:
    port = free_port()
    (tmp_path / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\n")
    process = subprocess.Popen([binary_path(), tmp_path / "sentinel.conf", "--sentinel"], stdout=subprocess.DEVNULL)
    yield port
    process.kill()
    process.wait()


async def test_a_sentinel_is_refused(sentinel_port: int) -> None:
    with redis.Redis(port=sentinel_port) as client:
        await until(lambda: _answers(client))
    with pytest.raises(SettingsError, match="a Redis Sentinel"):
        await check_redis(RedisSettings(url=f"redis://127.0.0.1:{sentinel_port}"))


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


async def test_a_redis_that_is_away_or_forbids_info_is_accepted(
    stopped_redis_server: RedisServer, redis_settings: RedisSettings
) -> None:
    await check_redis(redis_settings)
    stopped_redis_server.start()
    with stopped_redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-info")
    await check_redis(redis_settings)


def test_the_gateway_does_not_start_on_a_cluster(stopped_redis_server: RedisServer, tmp_path: Path) -> None:
    """It prints one line and exits with code 2."""
    stopped_redis_server.start(**CLUSTER)
    environment = {
        "GATEWAY_REDIS__URL": stopped_redis_server.url,
        "GATEWAY_REWARD__URL": "http://127.0.0.1:9",
        "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "gateway", "serve"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (2, 1) == (done.returncode, done.stderr.count("\n")), done.stderr
    assert "SettingsError: GATEWAY_REDIS__URL leads to a node of a Redis Cluster" in done.stderr
