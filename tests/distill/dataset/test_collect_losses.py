"""Records that left Redis before they were archived."""

from __future__ import annotations

import pytest

from distill.dataset.collect import GROUP, Collected, collect
from distill.errors import NightError
from distill.settings import DatasetSettings
from gateway.journal.reader import JournalReader
from gateway.settings import RedisSettings
from tests.distill.dataset.records import STREAM, publish, races
from tests.redis_server import RedisServer


@pytest.mark.parametrize("trimmed_away", [0, 1, 70])
async def test_lost_records_are_counted_once(
    trimmed_away: int, redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Before the first pass, and between two; archived entries do not count."""
    with redis_server.client() as client:
        for first in (0, 1000):
            publish(client, redis_settings, races(100, start=first))
            client.xtrim(STREAM, maxlen=100 - trimmed_away, approximate=False)
            done = await collect(redis_settings, dataset, batch_records=7)
            assert (100 - trimmed_away, trimmed_away) == (done.collected, done.lost)
            assert 0 == (await collect(redis_settings, dataset)).lost
            publish(client, redis_settings, races(10, start=first + 500))
            assert (10, 0) == ((done := await collect(redis_settings, dataset)).collected, done.lost)


async def test_records_added_or_lost_during_a_pass_are_counted_right(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Records added while it reads are not lost; unread ones trimmed while it reads are."""
    with redis_server.client() as client:
        publish(client, redis_settings, races(40))

        def meanwhile(done: Collected) -> None:
            if done.collected == 10:
                publish(client, redis_settings, races(25, start=100))
                client.xtrim(STREAM, maxlen=25, approximate=False)

        done = await collect(redis_settings, dataset, batch_records=10, flush_bytes=1, on_archived=meanwhile)
        later = await collect(redis_settings, dataset)
    assert (30, 0) == (done.lost, later.lost)
    assert 35 == done.collected + later.collected


async def test_records_trimmed_after_a_killed_pass_read_them_are_lost(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """A killed pass had read records, and they were trimmed before the next pass."""
    with redis_server.client() as client:
        publish(client, redis_settings, races(10))
        with pytest.raises(NightError):
            await collect(redis_settings, dataset, on_archived=lambda _: redis_server.kill())
        redis_server.start()
        publish(client, redis_settings, races(10, start=20))
        dead = JournalReader(redis_settings, group=GROUP, consumer="dead")
        await dead.start()
        assert 10 == len(await dead.read())
        await dead.aclose()
        client.xtrim(STREAM, maxlen=4, approximate=False)
        done = await collect(redis_settings, dataset.model_copy(update={"claim_idle_s": 0.001}))
        assert (4, 6) == (done.collected, done.lost)
