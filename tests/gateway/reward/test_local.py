"""The scorer with a model in this process: real MiniLM weights, and a fake model for what those cannot show."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.errors import RewardError, RewardUnavailable, SettingsError
from gateway.reward import availability, local
from gateway.reward.batcher import QueueFull
from gateway.reward.build import build_scorer
from gateway.reward.local import LAUNCH_TOKENS, Conversation, LocalScorer, Scored
from gateway.reward.model import RewardModel
from gateway.reward.remote import RemoteScorer
from gateway.settings import RewardSettings
from gateway.types import BatchStats
from tests.gateway.reward.fake_model import FakeModel
from tests.gateway.reward.texts import TEXTS, ask
from tests.waiting import until


def scorer_of(model: FakeModel, **settings: object) -> LocalScorer:
    return LocalScorer(RewardSettings.model_validate({"model": "fake", **settings}), load=lambda: model)


@pytest.fixture(scope="module")
def real_settings(minilm: str, adapter: Path) -> RewardSettings:
    return RewardSettings(model=minilm, adapter=adapter, device="cpu")


async def test_real_rewards_equal_the_models_own_in_any_batch(real_settings: RewardSettings) -> None:
    told: list[BatchStats] = []
    scorer = build_scorer(real_settings, observe=told.append)
    assert isinstance(scorer, LocalScorer)
    model = await scorer.loaded()
    scores = await asyncio.gather(*(scorer.score(ask("Where is Paris?"), text) for text in TEXTS))
    alone = [model.score([model.encode(ask("Where is Paris?"), text)])[0] for text in TEXTS]
    assert alone == pytest.approx([score.reward for score in scores], abs=1e-4)
    assert len(TEXTS) == sum(stats.entries for stats in told)
    long = await scorer.score(ask("word " * 2000), "an answer")
    assert long.prompt_truncated
    readiness = await scorer.readiness()
    assert readiness.ready
    assert ("cpu", "float32") == (readiness.facts["device"], readiness.facts["dtype"])
    assert isinstance(model, RewardModel)
    assert model.name == scorer.name
    await scorer.aclose()


async def test_a_model_that_cannot_be_loaded_says_so_and_gives_no_reward(tmp_path: Path) -> None:
    scorer = LocalScorer(RewardSettings(model=str(tmp_path)))
    with pytest.raises(SettingsError):
        await scorer.loaded()
    with pytest.raises(RewardError, match="could not be loaded"):
        await scorer.score(ask("hi"), "hello")
    readiness = await scorer.readiness()
    assert not readiness.ready
    assert "could not be loaded" in readiness.detail
    await scorer.aclose()


async def test_without_torch_a_local_model_names_the_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gateway.reward.model", None)
    scorer = LocalScorer(RewardSettings(model="some/model"))
    with pytest.raises(SettingsError, match=r"ratchet\[reward\]"):
        await scorer.loaded()
    await scorer.aclose()


async def test_while_the_model_loads_it_is_not_ready_and_gives_no_reward() -> None:
    released = threading.Event()
    model = FakeModel()

    def load() -> FakeModel:
        assert released.wait(30)
        return model

    scorer = LocalScorer(RewardSettings(model="some/model"), load=load)
    readiness = await scorer.readiness()
    assert (False, "the reward model is loading") == (readiness.ready, readiness.detail)
    assert "some/model" == scorer.name
    with pytest.raises(RewardError, match="still loading"):
        await scorer.score(ask("hi"), "hello")
    assert not scorer.available
    released.set()
    assert await scorer.loaded() is model
    assert 5.0 == (await scorer.score(ask("hi"), "hello")).reward
    await scorer.aclose()


async def test_answers_that_finish_together_share_a_batch_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_WAIT_MS", 100)
    model = FakeModel()
    scorer = scorer_of(model)
    await scorer.loaded()
    scores = await asyncio.gather(*(scorer.score(ask("hi"), "a" * n) for n in (3, 4, 5)))
    assert [3.0, 4.0, 5.0] == [score.reward for score in scores]
    assert [3] == model.batches
    assert {"reward-tokenizer_0", "reward-model_0"} == model.threads
    await scorer.aclose()


async def test_a_reward_that_is_not_a_number_fails_its_own_answer_only() -> None:
    scorer = scorer_of(FakeModel())
    await scorer.loaded()
    items = [Conversation(ask("hi"), "a" * 12), Conversation(ask("hi"), "a" * 13), Conversation(ask("refuse me"), "a")]
    good, bad, refused = await scorer.score_many([*items])
    assert isinstance(good, Scored)
    assert (12.0, 12) == (good.score.reward, good.tokens)
    assert "the reward model gave no number" == str(bad)
    assert "the reward model's chat template refuses this conversation" == str(refused)
    with pytest.raises(RewardError, match="no number"):
        await scorer.score(ask("hi"), "a" * 13)
    await scorer.aclose()


async def test_a_cancelled_score_is_dropped_before_it_runs() -> None:
    model = FakeModel()
    model.gate.clear()
    scorer = scorer_of(model)
    await scorer.loaded()
    running = asyncio.create_task(scorer.score(ask("hi"), "a"))
    await asyncio.to_thread(model.begun.wait, 30)
    waiting = asyncio.create_task(scorer.score(ask("hi"), "ab"))
    await until(lambda: scorer.waiting == 1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: scorer.waiting == 0)
    model.gate.set()
    assert 1.0 == (await running).reward
    assert [1] == model.batches
    await scorer.aclose()


async def test_a_full_queue_takes_all_of_a_call_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MAX_QUEUE", 2)
    model = FakeModel()
    model.gate.clear()
    scorer = scorer_of(model)
    await scorer.loaded()
    running = asyncio.create_task(scorer.score(ask("hi"), "a"))
    await asyncio.to_thread(model.begun.wait, 30)
    with pytest.raises(QueueFull):
        await scorer.score_many([Conversation(ask("hi"), "a")] * 3)
    await until(lambda: scorer.waiting == 0)
    model.gate.set()
    await running
    await scorer.aclose()


async def test_after_closing_there_are_no_rewards() -> None:
    scorer = scorer_of(FakeModel())
    await scorer.loaded()
    await scorer.aclose()
    with pytest.raises(RewardError, match="stopped"):
        await scorer.score(ask("hi"), "hello")


@pytest.mark.parametrize(("device", "tokens"), [("cpu", LAUNCH_TOKENS["cpu"]), ("cuda:0", LAUNCH_TOKENS["cuda"])])
async def test_starting_a_batch_weighs_more_on_a_gpu(device: str, tokens: int) -> None:
    scorer = scorer_of(FakeModel(device))
    await scorer.loaded()
    assert tokens == scorer._batcher.launch_tokens
    await scorer.aclose()


def test_the_settings_choose_the_scorer_and_torch_is_imported_late() -> None:
    assert build_scorer(RewardSettings()) is None
    assert isinstance(build_scorer(RewardSettings(url="http://127.0.0.1:1")), RemoteScorer)
    program = "import sys, gateway.reward.build, gateway.reward.server; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_model_that_fails_repeatedly_is_not_asked_until_a_probe_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(availability, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(availability, "PROBE_PAUSE_S", 0.05)
    model = FakeModel()
    scorer = scorer_of(model)
    await scorer.loaded()
    score = model.score

    def fail(_batch: object) -> list[float]:
        raise RewardError("the reward model failed on cuda:0: OutOfMemoryError")

    monkeypatch.setattr(model, "score", fail)
    for _ in range(availability.FAILURES_IN_A_ROW):
        assert (True, 0) == (scorer.available, scorer.n_away)
        with pytest.raises(RewardError, match="OutOfMemory"):
            await scorer.score(ask("hi"), "hello")
    assert (False, 1) == (scorer.available, scorer.n_away)
    with pytest.raises(RewardUnavailable):
        await scorer.score(ask("hi"), "hello")
    assert "gives no rewards: the reward model failed" in (await scorer.readiness()).detail
    monkeypatch.setattr(model, "score", score)
    await until(lambda: scorer.available)
    assert 5.0 == (await scorer.score(ask("hi"), "hello")).reward
    await scorer.aclose()


@pytest.mark.parametrize(("waited_s", "away"), [(0.05, False), (0.19, True)])
async def test_rewards_cancelled_at_the_timeout_count_as_failures(waited_s: float, away: bool) -> None:
    """A caller who leaves early does not count."""
    released = threading.Event()
    model = FakeModel()
    model.gate = released
    scorer = scorer_of(model, timeout_s=0.2)
    await scorer.loaded()
    for _ in range(availability.FAILURES_IN_A_ROW):
        waiting = asyncio.create_task(scorer.score(ask("hi"), "hello"))
        await asyncio.wait([waiting], timeout=waited_s)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert away == (not scorer.available)
    released.set()
    await scorer.aclose()


async def test_answers_without_a_number_are_the_models_fault_only_if_no_answer_has_one() -> None:
    scorer = scorer_of(FakeModel())
    await scorer.loaded()
    for _ in range(2 * availability.FAILURES_IN_A_ROW):
        with pytest.raises(RewardError, match="no number"):
            await scorer.score(ask("hi"), "a" * 13)
    assert scorer.available
    await scorer.aclose()
