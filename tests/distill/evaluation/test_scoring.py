"""Scoring: each distinct answer once, kept and resumed; the judge is not the selecting model."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save_file

from distill.errors import DataError, EvaluationError, SettingsError
from distill.evaluation import scoring
from distill.evaluation.prompts import Prompt
from distill.evaluation.reward_probes import PROBES, tolerance
from distill.evaluation.samples import Sample, answer_key
from distill.evaluation.scoring import Scores, adapter_digest, judge_settings, read_scores, score_samples, score_set
from gateway.embedded.weights import minilm_folder, reward_adapter_folder
from gateway.errors import GatewayError, RewardError
from gateway.settings import RewardSettings
from tests.gateway.best_of_n.fakes import FakeScorer
from tests.stubs.reward import RewardFault, RewardKnobs, RewardStub, reward_of

PROMPT = Prompt.of_text("Name a tree.")
SAMPLES = [Sample(PROMPT, 1.0, i, i, text, "stop", 3) for i, text in enumerate(["Oak.", "Ash.", "Oak."])]


def remote(stub: RewardStub) -> RewardSettings:
    return RewardSettings(url=stub.url)


async def test_each_distinct_answer_is_scored_once_and_kept(tmp_path: Path) -> None:
    settled: list[int] = []
    missing: list[int] = []

    def begin(_: Scores, tokens: int) -> None:
        missing.append(tokens)

    async with RewardStub() as stub:
        scores = await score_samples(remote(stub), SAMPLES, tmp_path, on_begin=begin, on_scored=settled.append)
        again = await score_samples(remote(stub), SAMPLES, tmp_path, on_begin=begin)
    rewards = read_scores(scores.path)
    assert {sample.answer_key: pytest.approx(reward_of(sample.text)) for sample in SAMPLES} == rewards
    assert (2, 3, 0) == (scores.missing, sum(settled), again.missing)
    assert [sum({sample.text: sample.completion_tokens for sample in SAMPLES}.values()), 0] == missing
    assert scores.path == again.path


@pytest.mark.parametrize("judge", [None, {"Oak.": -1.0, "Ash.": -2.0}])
def test_rewards_have_the_order_of_the_samples(judge: dict[str, float] | None) -> None:
    def by_answer(by_text: dict[str, float]) -> dict[str, float]:
        return {answer_key(PROMPT.messages, text): reward for text, reward in by_text.items()}

    rewards = by_answer({"Oak.": 1.0, "Ash.": 2.0})
    scored = score_set("base", 0.5, [SAMPLES], rewards, judge and by_answer(judge))
    assert ("base", 0.5, [[1.0, 2.0, 1.0]]) == (scored.policy, scored.temperature, scored.rewards_PM.tolist())
    assert (None if judge is None else [[-1.0, -2.0, -1.0]]) == (
        None if scored.judge_PM is None else scored.judge_PM.tolist()
    )
    assert scored.texts is not None
    assert [[3.0, 3.0, 3.0]] == scored.texts.tokens_PM.tolist()


async def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    async with RewardStub() as stub:
        path = (await score_samples(remote(stub), SAMPLES, tmp_path)).path
        whole = path.read_bytes()
        path.write_bytes(whole[: whole.index(b"\n") + 9])
        assert 1 == (await score_samples(remote(stub), SAMPLES, tmp_path)).missing
    assert sorted(whole.splitlines()) == sorted(path.read_bytes().splitlines())


async def test_another_model_has_another_file(tmp_path: Path) -> None:
    async with RewardStub() as one, RewardStub(RewardKnobs(model_id="stub/other")) as other:
        paths = {(await score_samples(remote(stub), SAMPLES, tmp_path)).path for stub in (one, other)}
    assert 2 == len(paths)


async def test_a_model_in_this_process_scores_too(tmp_path: Path) -> None:
    settings = RewardSettings(model=str(minilm_folder()), adapter=reward_adapter_folder())
    scores = await score_samples(settings, SAMPLES, tmp_path)
    assert 2 == len(set(read_scores(scores.path).values()))


async def test_a_backbone_that_is_replaced_in_its_folder_is_another_model(tmp_path: Path) -> None:
    """Weights of a model in this process, changed a little in place: everything is scored again, with news."""
    folder = tmp_path / "backbone"
    shutil.copytree(minilm_folder(), folder)
    settings = RewardSettings(model=str(folder), adapter=reward_adapter_folder())
    first = await score_samples(settings, SAMPLES, tmp_path / "draws")
    again = await score_samples(settings, SAMPLES, tmp_path / "draws")
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, folder / "model.safetensors")
    replaced = await score_samples(settings, SAMPLES, tmp_path / "draws")
    assert [(2, 0), (0, 0), (2, 1)] == [(each.missing, len(each.news)) for each in (first, again, replaced)]
    assert first.path == again.path != replaced.path


async def test_a_failing_server_ends_scoring_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_RETRY_WAIT_S", 0.0)
    monkeypatch.setattr(scoring, "_READY_TIMEOUT_S", 0.0)
    async with RewardStub() as stub:
        await score_samples(remote(stub), SAMPLES[:1], tmp_path)
        stub.knobs.update({"fault": RewardFault.STATUS, "fault_probability": 1.0})
        with pytest.raises(EvaluationError, match="scoring stopped: "):
            await score_samples(remote(stub), SAMPLES, tmp_path)
    with pytest.raises(EvaluationError, match="not ready"):
        await score_samples(RewardSettings(url="http://127.0.0.1:9"), SAMPLES, tmp_path)


async def test_a_missing_model_is_a_settings_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        await score_samples(RewardSettings(model=str(tmp_path / "absent")), SAMPLES, tmp_path)
    with pytest.raises(SettingsError, match="no reward model"):
        await score_samples(RewardSettings(), SAMPLES, tmp_path)


@pytest.mark.parametrize("line", ['["a", NaN]', '["a", Infinity]', '["a", null]', '["a", "x"]', '["a", 1, 2]', "{}"])
def test_a_reward_that_is_no_finite_number_is_named_by_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(DataError, match=r"scores\.jsonl, line 1 is not a score: remove the line to score it again$"):
        read_scores(path)


def test_a_line_that_is_not_a_score_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(["a", 1.5]) + '\n["b"]\n')
    with pytest.raises(DataError, match=r"scores\.jsonl, line 2"):
        read_scores(path)
    assert {} == read_scores(tmp_path / "absent")


def test_the_judge_is_another_model_on_a_backbone(tmp_path: Path) -> None:
    own = RewardSettings(model="backbone", adapter=reward_adapter_folder())
    assert judge_settings(own, "", None) is None
    judge = judge_settings(RewardSettings(url="http://reward"), "other", None)
    assert judge is not None
    assert ("other", "") == (judge.model, judge.url)
    for reward, model, adapter, message in (
        (own, "", reward_adapter_folder(), "proves nothing"),
        (RewardSettings(url="http://reward"), "", reward_adapter_folder(), "needs a backbone"),
        (own, "", tmp_path, "no adapter in"),
    ):
        with pytest.raises(SettingsError, match=message):
            judge_settings(reward, model, adapter)


@pytest.mark.parametrize(("off", "taken"), [(0.0, True), (0.9, True), (1.1, False), (-0.9, True), (-1.1, False)])
async def test_rewards_of_an_earlier_release_are_reused_if_some_are_the_same(
    tmp_path: Path, off: float, taken: bool
) -> None:
    """``off`` is in units of the tolerance between rewards of one model."""
    async with RewardStub() as stub:
        path = (await score_samples(remote(stub), SAMPLES, tmp_path)).path
        name = (await score_samples(remote(stub), SAMPLES, tmp_path)).model
        rewards = [reward_of(answer) for _, answer in PROBES]
        lines = [
            json.dumps([key, reward + off * tolerance(rewards)]) + "\n" for key, reward in read_scores(path).items()
        ]
        path.unlink()
        scoring._file(tmp_path, name, "").write_text("".join(lines))
        scores = await score_samples(remote(stub), SAMPLES, tmp_path)
    assert (0 if taken else 2, name) == (scores.missing, scores.model)
    assert path == scores.path
    way = "reused: some were scored again and are the same" if taken else "not reused: some differ when scored again"
    assert (f"rewards by {name} of an earlier release are {way}",) == scores.news


def test_answers_and_models_find_their_rewards_of_earlier_releases() -> None:
    """The names on disk: another name for the same answer or model would score everything again."""
    assert "67efc80d5965c554ad1e78bdfe4c150f" == answer_key([{"role": "user", "content": "Name a tree."}], "Oak.")
    names = [scoring._file(Path(), *identity).name for identity in (("judge", ""), ("judge", "abc", "id1"))]
    assert ["scores-755a1f7829dd.jsonl", "scores-132ec1c480b1.jsonl"] == names


def test_an_adapters_digest_is_of_its_files_names_and_contents(tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    parts = [name.encode() + b"\0" + hashlib.sha256(content).digest() for name, content in files.items()]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == adapter_digest(tmp_path)
    assert "" == adapter_digest(None)


def test_the_judge_may_share_the_backbone_or_the_adapter_but_not_both() -> None:
    adapter = reward_adapter_folder()
    own = RewardSettings(model="backbone", adapter=adapter)
    assert own.model_copy(update={"adapter": None}) == judge_settings(own, "backbone", None)
    assert own.model_copy(update={"model": "other"}) == judge_settings(own, "other", adapter)
    bare = RewardSettings(model="backbone")
    assert own == judge_settings(bare, "", adapter)
    with pytest.raises(SettingsError, match=r"^the judge is the selecting model: that proves nothing$"):
        judge_settings(bare, "backbone", None)


@pytest.mark.parametrize(("timeout_s", "patient_s"), [(5.0, 120.0), (120.0, 120.0), (121.0, 121.0)])
async def test_a_reward_may_take_two_minutes_at_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: float, patient_s: float
) -> None:
    built: list[RewardSettings] = []
    monkeypatch.setattr(scoring, "build_scorer", built.append)
    settings = RewardSettings(url="http://reward", timeout_s=timeout_s)
    with pytest.raises(SettingsError, match="no reward model"):
        await score_samples(settings, SAMPLES, tmp_path)
    assert [settings.model_copy(update={"timeout_s": patient_s})] == built


async def test_known_rewards_are_reported_before_the_beginning_and_new_ones_one_by_one(tmp_path: Path) -> None:
    events: list[object] = []

    def begin(scores: Scores, tokens: int) -> None:
        events.append(("begin", scores.missing, tokens))

    async with RewardStub() as stub:
        for samples in (SAMPLES[:1], SAMPLES, SAMPLES):
            scores = await score_samples(remote(stub), samples, tmp_path, on_begin=begin, on_scored=events.append)
            assert () == scores.news
    assert [0, ("begin", 1, 3), 1, 2, ("begin", 1, 3), 1, 3, ("begin", 0, 0)] == events


async def test_the_longest_texts_are_scored_first(tmp_path: Path) -> None:
    """Prompt and answer count together."""
    texts = {"a": "four", "b": "a longer answer", "prompt of some length": "short", "c": ""}
    missing = [(prompt, Sample(Prompt.of_text(prompt), 1.0, 0, 0, text, "stop", 1)) for prompt, text in texts.items()]
    scorer, known, told = FakeScorer(lambda text: float(len(text))), {}, []  # type: ignore[var-annotated]
    await scoring._score(scorer, missing, tmp_path / "scores.jsonl", known, told.append)
    assert ["short", "a longer answer", "four", ""] == scorer.asked
    expected = {"prompt of some length": 5.0, "b": 15.0, "a": 4.0, "c": 0.0}
    assert expected == known == read_scores(tmp_path / "scores.jsonl")
    assert list(expected) == told


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
async def test_a_reward_is_asked_for_three_times_with_growing_pauses(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    pauses_s: list[float] = []

    async def pause(duration_s: float) -> None:
        pauses_s.append(duration_s)

    results: list[float | GatewayError | None] = [*[RewardError("down")] * failures, 1.5]
    scorer = FakeScorer(lambda _: results[len(scorer.asked) - 1])
    monkeypatch.setattr(scoring, "asyncio", SimpleNamespace(sleep=pause))
    if failures < 3:
        assert 1.5 == await scoring._reward(scorer, SAMPLES[0])
    else:
        with pytest.raises(RewardError, match="down"):
            await scoring._reward(scorer, SAMPLES[0])
    assert ["Oak."] * min(failures + 1, 3) == scorer.asked
    assert [PROMPT.messages] * len(scorer.asked) == scorer.conversations
    assert [1.0, 2.0][:failures] == pauses_s


@pytest.mark.parametrize(("known", "asked"), [(0, 0), (1, 1), (7, 7), (8, 8), (9, 8)])
@pytest.mark.parametrize("off", [0.0, 0.5, -0.5, 0.75, -0.75])
async def test_eight_rewards_of_an_earlier_release_are_asked_for_again(known: int, asked: int, off: float) -> None:
    """Half a point is allowed; without a known reward nothing shows that they are the same."""
    samples = [Sample(PROMPT, 1.0, i, i, "x" * i, "stop", 3) for i in range(1, 11)]
    kept = {sample.answer_key: len(sample.text) + off for sample in samples[10 - known :]}
    scorer = FakeScorer(lambda text: float(len(text)))
    assert (known > 0 and abs(off) <= 0.5) == await scoring._gives_same_rewards(scorer, kept, samples, 0.5)
    assert [sample.text for sample in samples[10 - known :][:asked]] == scorer.asked


async def test_one_other_reward_of_an_earlier_release_is_enough_to_score_anew() -> None:
    scorer = FakeScorer(lambda text: float(len(text)))
    kept = {SAMPLES[0].answer_key: 4.0, SAMPLES[1].answer_key: 5.0}
    assert not await scoring._gives_same_rewards(scorer, kept, SAMPLES, 0.5)
