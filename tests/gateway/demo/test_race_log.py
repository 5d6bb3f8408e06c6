"""The demo reads its races back, on a real Redis."""

from collections.abc import Iterator

import pytest
import redis

from gateway.demo import race_log
from gateway.demo.race_log import RaceLog
from gateway.embedded.redis import RedisServer
from gateway.errors import JournalError
from tests.gateway.demo.records import KEY, add, race_record


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


def test_only_races_since_it_was_opened_are_read(redis_url: str, client: redis.Redis) -> None:
    add(client, race_record(id="old", rewards=[1.0]))
    with RaceLog(redis_url) as log:
        add(client, race_record(id="new", rewards=[1.0]))
        assert ["new"] == [record.id for record in log.read()]


def test_a_race_that_is_in_the_stream_twice_counts_once(redis_url: str, client: redis.Redis) -> None:
    with RaceLog(redis_url) as log:
        for _ in range(2):
            add(client, race_record(id="twice", rewards=[1.0, 2.0]))
        assert ["twice"] == [record.id for record in log.read()]


def test_the_nights_consumers_still_get_every_race(redis_url: str, client: redis.Redis) -> None:
    with RaceLog(redis_url) as log:
        add(client, race_record(id="kept", rewards=[1.0]))
        assert "kept" == log.wait_for("kept").id
    client.xgroup_create(KEY, "night", id="0")
    assert "kept" in str(client.xreadgroup("night", "one", {KEY: ">"}))


def test_a_race_that_never_arrives_is_an_error(
    redis_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race_log, "_FIND_TIMEOUT_S", 0.05)
    with RaceLog(redis_url) as log, pytest.raises(JournalError, match="the race of lost did not reach Redis"):
        log.wait_for("lost")
