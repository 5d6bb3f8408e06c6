"""The guard at work: on a real gateway with live traffic, and killed at work."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from distill.errors import DataError, NightError
from distill.promotion.policies import known_policies, promote_canary, start_canary
from distill.promotion.reward_identity import RewardIdentity
from distill.promotion.watch import Watch
from distill.settings import PromotionSettings
from gateway.errors import GatewayError
from gateway.journal.reader import JournalReader
from gateway.journal.record import CompletionRecord, encode
from gateway.journal.stream import StreamTail
from gateway.policy import Policy, PolicyStore
from gateway.settings import RedisSettings, RewardSettings
from gateway.types import Arm
from tests.distill.promotion.traffic import record
from tests.redis_server import RedisServer
from tests.serving import Serve, Served
from tests.stubs.knobs import Knobs
from tests.stubs.reward import RewardStub
from tests.stubs.tgi import TgiStub
from tests.waiting import until

NEW = Arm("canary", "rft-1", 1)
LIVE = {"canary_requests": 20, "holdback_share": 0.4, "watch_requests": 30, "guard_margin": 0.3}


def settings(tmp_path: Path, **changes: Any) -> PromotionSettings:
    return PromotionSettings.model_validate({"guard_file": tmp_path / "guard.json", **changes})


@asynccontextmanager
async def watching(served: Served, tmp_path: Path, **changes: Any) -> AsyncIterator[PolicyStore]:
    """Run a guard for this gateway; yield the policy as it reads it."""
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        policy, redis = served.settings.policy, served.settings.redis
        store = PolicyStore(policy, redis, folder=tmp_path / "guard", n_limit=16)
        stack.push_async_callback(store.aclose)
        tail = await stack.enter_async_context(aclosing(StreamTail(redis)))
        guard = asyncio.create_task(Watch(store, tail, settings(tmp_path, **LIVE | changes)).forever(stop))
        yield store
        stop.set()
        await guard


class Traffic:
    """Callers who send requests all the time, each in a new conversation; every answer's status and race is kept."""

    def __init__(self, served: Served) -> None:
        self.statuses: list[int] = []
        self.races: list[dict[str, Any]] = []
        self._served = served
        self._numbers = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(6)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self) -> None:
        while True:
            question = {"role": "user", "content": f"question {next(self._numbers)}"}
            response = await self._served.chat(messages=[question])
            self.statuses.append(response.status_code)
            self.races.append(response.json().get("best_of_n", {}))


def reasons(known: list[Policy]) -> list[str]:
    return [" ".join(policy.reason.split()[:2]).rstrip(":") for policy in known]


async def test_a_good_canary_is_promoted_watched_and_then_answers_all_requests(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    """With live traffic, no failed request, and N = 1, whose single candidates are scored for the comparison."""
    served = await serve(Knobs(adapters=("rft-1",), rich_adapters=("rft-1",)), policy={"n": 3, "refresh_s": 0.05})
    async with watching(served, tmp_path) as store, Traffic(served) as traffic:
        await start_canary(store, NEW, share=0.4, trial="night-1", reason="gate passed")
        await until(lambda: store.current.version == 3)
        before = len(traffic.races)
        await until(lambda: len(traffic.races) > before + 30)
        known = await known_policies(store)
    assert ["guard: watched", "guard: promoted", "gate passed"] == reasons(known)[:3]
    assert ("rft-1", 1, None) == (known[0].adapter, known[0].n, known[0].canary)
    assert {200} == set(traffic.statuses)
    assert {"stable", "canary", "holdback"} == {race["arm"] for race in traffic.races}
    assert {("rft-1", 1)} == {(race["adapter"], race["n"]) for race in traffic.races[-10:]}


async def test_a_canary_with_lower_live_rewards_is_rolled_back(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served = await serve(Knobs(adapters=("rft-1",), dull_adapters=("rft-1",)), policy={"n": 3, "refresh_s": 0.05})
    async with watching(served, tmp_path) as store, Traffic(served) as traffic:
        await start_canary(store, NEW, share=0.4, trial="night-1", reason="gate passed")
        await until(lambda: store.current.version == 2)
        known = await known_policies(store)
    assert ["guard: rolled", "gate passed"] == reasons(known)[:2]
    assert (None, 3, None, "night-1") == (known[0].adapter, known[0].n, known[0].canary, known[0].undoes)
    assert {200} == set(traffic.statuses)


async def test_a_promoted_policy_is_rolled_back_when_the_evidence_turns(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It is compared with the holdback; N is restored."""
    served = await serve(Knobs(adapters=("rft-1",), rich_adapters=("rft-1",)), policy={"n": 3, "refresh_s": 0.05})
    async with watching(served, tmp_path, watch_requests=10_000) as store, Traffic(served) as traffic:
        await start_canary(store, NEW, share=0.4, trial="night-1", reason="gate passed")
        await until(lambda: store.current.version == 2)
        served.tgi.knobs.update({"rich_adapters": (), "dull_adapters": ("rft-1",)})
        await until(lambda: store.current.version == 3)
        known = await known_policies(store)
        before = len(traffic.races)
        await until(lambda: len(traffic.races) > before + 30)
    assert ["guard: rolled", "guard: promoted", "gate passed"] == reasons(known)[:3]
    assert (None, 3, None) == (known[0].adapter, known[0].n, known[0].canary)
    assert {200} == set(traffic.statuses)
    assert {(None, 3, "stable")} == {(race["adapter"], race["n"], race["arm"]) for race in traffic.races[-10:]}


async def test_a_canary_whose_pool_dies_is_rolled_back_and_no_request_fails(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    served = await serve(policy={"n": 2, "refresh_s": 0.05}, backend={"unhealthy_s": 0.1})
    async with watching(served, tmp_path) as store, Traffic(served) as traffic:
        async with TgiStub(Knobs(adapters=("rft-1",))) as pool:
            arm = Arm("canary", "rft-1", 2, (pool.url,))
            await start_canary(store, arm, share=0.4, trial="night-1", reason="gate passed")
            await until(lambda: any(race["arm"] == "canary" for race in traffic.races))
        await until(lambda: store.current.version == 2)
        known = await known_policies(store)
    assert "guard: rolled" == reasons(known)[0]
    assert {200} == set(traffic.statuses)
    assert "canary" in {race["arm_failed"] for race in traffic.races}


@pytest.fixture
def add(redis_server: RedisServer) -> Callable[[list[CompletionRecord]], None]:
    """Add records to the stream, as gateways do."""

    def put(records: list[CompletionRecord]) -> None:
        with redis_server.client() as client, client.pipeline(transaction=False) as pipe:
            for one in records:
                pipe.xadd("ratchet:journal", {"id": one.id, "data": encode(one)})
            pipe.execute()

    return put


@pytest.fixture
async def trial(store: PolicyStore) -> PolicyStore:
    """A running trial: a canary of N = 1 against best of 8."""
    await start_canary(store, NEW, share=0.4, trial="night-1", reason="gate passed")
    return store


def pair(version: int = 1, new: float = 5.0) -> list[CompletionRecord]:
    old = Arm("stable", None, 8)
    return [
        record([1.0, 2.0] * 4, old, policy_version=version),
        record([new], NEW, policy_version=version),
    ]


@asynccontextmanager
async def guard(store: PolicyStore, redis: RedisSettings, options: PromotionSettings) -> AsyncIterator[Watch]:
    async with aclosing(StreamTail(redis, batch_records=16)) as tail:
        yield Watch(store, tail, options)


@pytest.mark.parametrize("promoted", [False, True])
async def test_weights_swapped_behind_the_reward_models_name_end_the_trial(
    trial: PolicyStore, redis_settings: RedisSettings, tmp_path: Path, promoted: bool
) -> None:
    """Rolled back with the reason, before and after the promotion; a temporarily unreachable server ends nothing."""
    if promoted:
        await promote_canary(trial, trial="night-1", holdback_share=0.4, reason="promoted")
    options = settings(tmp_path)
    async with RewardStub() as server:
        for look_on, decision in ((True, "wait"), (False, "wait"), (True, "wait")):
            server.knobs.update({"healthy": look_on})
            assert decision == await decided(trial, redis_settings, options, server.url)
        server.knobs.update({"shift": 10.0})
        assert "roll back" == await decided(trial, redis_settings, options, server.url)
    (last, *_) = await known_policies(trial)
    assert (None, "night-1") == (last.adapter, last.undoes)
    assert "the reward model behind the same name gives other rewards now" in last.reason


async def decided(store: PolicyStore, redis: RedisSettings, options: PromotionSettings, url: str) -> str | None:
    """The decision of a guard that is started now."""
    async with aclosing(StreamTail(redis)) as tail, aclosing(RewardIdentity(RewardSettings(url=url))) as reward:
        look = await Watch(store, tail, options, reward).once()
    return None if look.verdict is None else look.verdict.decision


def counted(tmp_path: Path) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads((tmp_path / "guard.json").read_bytes())
    return document


async def test_without_a_trial_nothing_is_compared(
    store: PolicyStore, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    async with guard(store, redis_settings, settings(tmp_path)) as watch:
        look = await watch.once()
    assert (None, None, False) == (look.phase, look.verdict, look.rolled_back)


async def test_each_look_continues_at_the_end_of_the_last_one(
    trial: PolicyStore, redis_settings: RedisSettings, tmp_path: Path, add: Callable[[list[CompletionRecord]], None]
) -> None:
    pairs = []
    async with guard(trial, redis_settings, settings(tmp_path)) as watch:
        for _ in range(3):
            add([one for _ in range(20) for one in pair()])
            look = await watch.once()
            pairs.append(look.verdict.pairs if look.verdict else 0)
    assert [20, 40, 60] == pairs


async def test_the_guard_does_not_hold_back_trimming(
    trial: PolicyStore, redis_settings: RedisSettings, tmp_path: Path, add: Callable[[list[CompletionRecord]], None]
) -> None:
    """It is no consumer group; records trimmed before it reads them are missing, and it continues."""
    add([one for _ in range(20) for one in pair()])
    night = JournalReader(redis_settings, group="night", consumer="one")
    async with aclosing(night), guard(trial, redis_settings, settings(tmp_path)) as watch:
        await night.start()
        await watch.once()
        await night.ack([delivery.entry_id for delivery in await night.read()])
        assert 40 == await night.trim()
        add(pair())
        look = await watch.once()
    assert look.verdict is not None
    assert 21 == look.verdict.pairs


async def test_records_other_than_completions_are_skipped(
    trial: PolicyStore, redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    with redis_server.client() as client:
        client.xadd("ratchet:journal", {"id": "x", "data": b"garbage"})
        client.xadd("ratchet:journal", {"id": "y"})
    async with guard(trial, redis_settings, settings(tmp_path)) as watch:
        await watch.once()
    assert [] == counted(tmp_path)["evidence"]["new"]


async def test_a_new_trial_starts_without_evidence(
    trial: PolicyStore, redis_settings: RedisSettings, tmp_path: Path, add: Callable[[list[CompletionRecord]], None]
) -> None:
    add(pair())
    async with guard(trial, redis_settings, settings(tmp_path)) as watch:
        await watch.once()
        await start_canary(trial, NEW, share=0.4, trial="night-2", reason="gate passed")
        add(pair() + pair(version=2, new=7.0))
        await watch.once()
    assert [7.0] == counted(tmp_path)["evidence"]["new"]


async def test_a_step_decided_but_not_published_is_published_by_the_next_look(
    trial: PolicyStore,
    redis_settings: RedisSettings,
    tmp_path: Path,
    add: Callable[[list[CompletionRecord]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evidence is on disk before the policy changes; and a published step is not published twice."""
    add([one for _ in range(60) for one in pair(new=-9.0)])

    def killed(policy: Policy) -> None:
        raise RuntimeError("killed here")

    async with guard(trial, redis_settings, settings(tmp_path)) as watch:
        monkeypatch.setattr(trial, "publish", killed)
        with pytest.raises(RuntimeError, match="killed here"):
            await watch.once()
        monkeypatch.undo()
        assert (await watch.once()).rolled_back
        assert (await watch.once()).phase is None
    assert ["guard: rolled", "gate passed"] == reasons(await trial.history())


async def test_two_guards_do_not_share_a_file(
    trial: PolicyStore, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    stop = asyncio.Event()
    async with guard(trial, redis_settings, settings(tmp_path)) as one:
        running = asyncio.create_task(one.forever(stop))
        await until((tmp_path / "guard.json.lock").exists)
        async with guard(trial, redis_settings, settings(tmp_path)) as other:
            with pytest.raises(NightError, match="another guard is at work"):
                await other.once()
        stop.set()
        await running


async def test_a_damaged_file_is_named(trial: PolicyStore, redis_settings: RedisSettings, tmp_path: Path) -> None:
    (tmp_path / "guard.json").write_text('{"after": "0-0"}')
    async with guard(trial, redis_settings, settings(tmp_path)) as watch:
        with pytest.raises(DataError, match=r"guard\.json is damaged"):
            await watch.once()


async def test_unreadable_files_are_named(trial: PolicyStore, redis_settings: RedisSettings, tmp_path: Path) -> None:
    (tmp_path / "guard.json").mkdir()
    async with guard(trial, redis_settings, settings(tmp_path)) as watch:
        with pytest.raises(NightError, match="cannot be read"):
            await watch.once()
    (tmp_path / "file").touch()
    options = settings(tmp_path, guard_file=tmp_path / "file" / "guard.json")
    async with guard(trial, redis_settings, options) as watch:
        with pytest.raises(NightError, match="cannot be locked"):
            await watch.once()


async def test_unreachable_redis_is_an_error_of_one_look_and_retried_by_the_watch(
    trial: PolicyStore, redis_server: RedisServer, redis_settings: RedisSettings, tmp_path: Path
) -> None:
    async with guard(trial, redis_settings, settings(tmp_path)) as watch:
        redis_server.kill()
        with pytest.raises(GatewayError, match="could not be read"):
            await watch.once()
        stop = asyncio.Event()
        running = asyncio.create_task(watch.forever(stop))
        await until(lambda: trial.last_error is not None)
        stop.set()
        await running


def distill(redis: RedisServer, tmp_path: Path, *arguments: str) -> subprocess.Popen[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "DISTILL_"))}
    environment = kept | {
        "GATEWAY_REDIS__URL": redis.url,
        "GATEWAY_JOURNAL__SPOOL_DIR": str(tmp_path / "spool"),
        "GATEWAY_POLICY__N": "8",
        "DISTILL_PROMOTION__GUARD_FILE": str(tmp_path / "guard.json"),
        "DISTILL_PROMOTION__CANARY_REQUESTS": "1000000",
        "OMP_NUM_THREADS": "1",
    }
    # Not python -m distill: importing what the other commands need takes longer than the counting.
    program = "import typer; from distill.cli.watch import watch; typer.run(watch)"
    return subprocess.Popen([sys.executable, "-c", program, *arguments], env=environment)


async def test_a_guard_killed_at_work_counts_no_record_twice(
    trial: PolicyStore,
    redis_server: RedisServer,
    redis_settings: RedisSettings,
    tmp_path: Path,
    add: Callable[[list[CompletionRecord]], None],
) -> None:
    """Kill -9 at two moments; in the end its evidence equals that of a guard that was not killed."""
    records = [one for _ in range(800) for one in pair()]
    add([*records[:500], *records])  # some of them delivered twice, as after a gateway's crash
    places: list[str] = []
    for _ in range(2):
        process = distill(redis_server, tmp_path)
        before = places[-1] if places else ""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and before == _place(tmp_path):
            await asyncio.sleep(0.002)
        process.kill()
        process.wait()
        places.append(_place(tmp_path))
    assert 0 == distill(redis_server, tmp_path, "--once").wait()
    (tmp_path / "whole").mkdir()
    options = settings(tmp_path / "whole", canary_requests=1_000_000)
    async with guard(trial, redis_settings, options) as watch:
        await watch.once()
    assert sorted(set(places)) == places
    assert counted(tmp_path / "whole") == counted(tmp_path)
    assert 800 == len(counted(tmp_path)["evidence"]["new"])


def _place(tmp_path: Path) -> str:
    file = tmp_path / "guard.json"
    return str(orjson.loads(file.read_bytes())["after"]) if file.exists() else ""
