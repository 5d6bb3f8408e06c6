"""Collecting with a clock that is wrong."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from distill.dataset.collect import CLOCKS_APART, QUIET, clock_doubt, collect
from distill.settings import DatasetSettings
from gateway.journal.reader import JournalReader
from gateway.settings import RedisSettings
from tests.distill.dataset.records import DAY_MS, STREAM, archived, publish, race
from tests.redis_server import RedisServer

NOW = datetime(2026, 11, 28, 3, 30, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("ahead", "quiet", "doubted"),
    [
        (CLOCKS_APART - SECOND, SECOND, ""),
        (CLOCKS_APART, SECOND, ""),
        (CLOCKS_APART + SECOND, SECOND, "1.0 hours apart"),
        (-CLOCKS_APART - SECOND, SECOND, "1.0 hours apart"),
        (timedelta(days=40), SECOND, "40 days apart"),
        (-timedelta(days=400), SECOND, "400 days apart"),
        (SECOND, QUIET - SECOND, ""),
        (SECOND, QUIET, ""),
        (SECOND, QUIET + SECOND, "the newest record is 7 days old"),
        (SECOND, None, ""),
    ],
)
def test_clocks_are_trusted_within_bounds(ahead: timedelta, quiet: timedelta | None, doubted: str) -> None:
    doubt = clock_doubt(NOW + ahead, NOW, None if quiet is None else NOW - quiet)
    assert doubted in (doubt or "") if doubted else doubt is None


async def test_a_clock_that_is_wrong_by_days_expires_nothing(
    redis_server: RedisServer, redis_settings: RedisSettings, dataset: DatasetSettings
) -> None:
    """Whichever clock is wrong; an option confirms that the clock is right."""
    keeping = dataset.model_copy(update={"keep_days": 30})
    fresh = [race(f"chatcmpl-{n}", time_ms=int(time.time() * 1000) - n * DAY_MS) for n in range(3)]
    with redis_server.client() as client:
        publish(client, redis_settings, fresh)
        client.xgroup_create(STREAM, "audit", id="0")  # keeps entries in the stream
        for days in (40, -40):
            wrong = datetime.now(UTC) + timedelta(days=days)
            done = await collect(redis_settings, keeping, now=lambda wrong=wrong: wrong)  # type: ignore[misc]
            assert (0, 3, 3) == (done.expired, client.xlen(STREAM), len(archived(dataset)))
            assert "nothing was expired (DISTILL_DATASET__KEEP_DAYS): this machine's clock" in done.warnings[-1]
        wrong = datetime.now(UTC) + timedelta(days=40)
        done = await collect(redis_settings, keeping, now=lambda: wrong, trust_clock=True)
        assert (0, 3) == (done.expired, len(archived(dataset)))  # by Redis's clock none is too old


async def test_the_records_of_a_gateway_whose_clock_is_wrong_are_kept_from_their_collection_on(
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    dataset: DatasetSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """400 days late or ahead: neither deleted at once nor kept permanently; with a right clock their time counts."""
    keeping = dataset.model_copy(update={"keep_days": 30})
    now = datetime.now(UTC)
    now_ms = int(now.timestamp() * 1000)
    ages = {"late": 400, "ahead": -400, "right": 0, "waited": 6}
    with redis_server.client() as client:
        publish(client, redis_settings, [race(name, time_ms=now_ms - days * DAY_MS) for name, days in ages.items()])
    assert (4, 0) == ((done := await collect(redis_settings, keeping)).collected, done.expired)
    assert sorted(ages) == archived(dataset)
    for days, left in (
        (24, sorted(ages)),
        (25, ["ahead", "late", "right"]),
        (30, ["ahead", "late", "right"]),
        (31, []),
    ):
        later = now + timedelta(days=days)
        monkeypatch.setattr(JournalReader, "clock_ms", _clock(later))
        await collect(redis_settings, keeping, now=lambda later=later: later, trust_clock=True)  # type: ignore[misc]
        assert left == archived(dataset), days


def _clock(now: datetime) -> Callable[[JournalReader], Awaitable[int]]:
    async def clock_ms(_: JournalReader) -> int:
        return int(now.timestamp() * 1000)

    return clock_ms
