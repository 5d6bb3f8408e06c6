"""A model that was replaced behind its name is recognised by its answers, and samples of the old one are not reused."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distill.evaluation.sample_store import sample_file
from distill.evaluation.scoring import _file, read_scores
from distill.report.facts import NightFacts
from distill.run_dir import RunDir, runs
from gateway.settings import RedisSettings
from tests.distill.nightly.attempts import attempt
from tests.distill.nightly.fleet import PROMPTS, environment, log_races
from tests.distill.training.tiny import tiny_base
from tests.redis_server import RedisServer
from tests.stubs.process import StubProcess


@dataclass
class Fleet:
    """A stub fleet whose models can be replaced between two nights, and the nights' folder."""

    folder: Path
    tgi: StubProcess
    reward: StubProcess
    server: RedisServer
    redis: RedisSettings
    variables: dict[str, str]
    races: int = 0

    def night(self, *arguments: str) -> RunDir:
        """Run a night on new races, to its end or to the step of --until."""
        log_races(self.server, self.redis, start=self.races, count=PROMPTS)
        self.races += PROMPTS
        return self.resume("--new", *arguments)

    def resume(self, *arguments: str) -> RunDir:
        """Resume the last night."""
        assert 0 == attempt(self.variables, arguments), self.output()
        return runs(self.folder / "runs")[-1]

    def output(self) -> str:
        return " ".join((self.folder / "attempts.log").read_text().split())

    def replace(self, part: StubProcess, **knobs: Any) -> None:
        """Replace the model behind a stub's URL and name."""
        asyncio.run(part.set_knobs(**knobs))


@pytest.fixture
def fleet(tmp_path: Path, redis_server: RedisServer, redis_settings: RedisSettings) -> Iterator[Fleet]:
    tgi, reward = StubProcess("tests.stubs.tgi"), StubProcess("tests.stubs.reward")
    for stub in (tgi, reward):
        stub.start()
    model = tiny_base(tmp_path / "tiny")
    folder = tmp_path / "night"
    folder.mkdir()
    variables = environment(folder, tgi_url=tgi.url, reward_url=reward.url, redis_url=redis_server.url, model=model)
    # A worse adapter: each night keeps the base, and the next one measures against it again.
    variables["ATTEMPT_ADAPTERS"] = "dull"
    yield Fleet(folder, tgi, reward, redis_server, redis_settings, variables)
    for stub in (tgi, reward):
        stub.stop()


def test_reward_weights_swapped_behind_one_name_promote_nothing(fleet: Fleet) -> None:
    """Rewards of two reward models are not compared: that made a worse policy look better."""
    first = fleet.night()
    fleet.replace(fleet.reward, shift=10.0)
    second = fleet.night()
    assert not result(first, "gate")["promote"]
    assert not result(second, "gate")["promote"]
    assert gain(second) == pytest.approx(gain(first), abs=0.05)
    assert result(first, "score")["select"]["path"] != result(second, "score")["select"]["path"]
    words = "the reward model stub/reward gives other rewards than in earlier nights: every answer is scored again"
    assert [words] == NightFacts.read(second.path).notes
    assert words in fleet.output()
    assert words[1:] in (second.path / "report.html").read_text()
    assert [] == NightFacts.read(first.path).notes
    third = fleet.night()
    assert [] == NightFacts.read(third.path).notes, "it is known by now"
    assert result(second, "score")["select"]["path"] == result(third, "score")["select"]["path"]


def test_samples_are_reused_only_if_the_same_model_answers(fleet: Fleet) -> None:
    """Other weights, another sampler default or other files of the training base: everything is drawn again."""
    base = Path(fleet.variables["DISTILL_TRAINING__MODEL"])

    def another_template() -> None:
        template = base / "chat_template.jinja"
        template.write_text(template.read_text() + "{# another #}")

    changes: dict[str, Callable[[], object]] = {
        "weights": lambda: fleet.replace(fleet.tgi, weights="another"),
        "sampler": lambda: fleet.replace(fleet.tgi, sampler="another"),
        "the base that trains": lambda: tiny_base(base, seed=1),
        "its chat template": another_template,
    }
    before = result(fleet.night("--until", "draw"), "draw")
    assert [] == before["news"]
    for what, change in changes.items():
        change()
        anew, again = (result(fleet.night("--until", "draw"), "draw") for _ in range(2))
        assert 0 == anew["reused"], what
        assert anew["behaviour"] != before["behaviour"], what
        (words,) = anew["news"]
        assert words.startswith("what answers is another model than in earlier nights"), what
        assert (anew["behaviour"], []) == (again["behaviour"], again["news"]), what
        assert again["reused"] > 0, what
        before = again


@pytest.mark.parametrize("replaced", [False, True])
def test_samples_of_a_release_without_probes_are_adopted_if_they_come_out_the_same(
    fleet: Fleet, replaced: bool
) -> None:
    """A few of them are drawn and scored again to find out."""
    first = fleet.night()
    as_an_earlier_release_left_it(fleet, first)
    if replaced:
        fleet.replace(fleet.tgi, weights="another")
        fleet.replace(fleet.reward, shift=1.0)
    second = fleet.night("--until", "score")
    drawn, scored = result(second, "draw"), result(second, "score")
    assert replaced == (drawn["reused"] == 0)
    way = "are not reused" if replaced else "are reused"
    # Where all is drawn anew, no answer is left by which rewards could be compared.
    for (words,), what in ((drawn["news"], "samples of the base by"), (scored["news"], "rewards by stub/reward of")):
        assert words.startswith(f"{what} an earlier release {way}: ")


def test_a_reward_model_replaced_between_two_attempts_scores_everything_again(fleet: Fleet) -> None:
    """Both policies' rewards are those of the new model, and the night reports the change."""
    fleet.night("--until", "draw")
    assert [] == result(fleet.resume("--until", "score"), "score")["news"]
    run = runs(fleet.folder / "runs")[-1]
    (run.path / "steps" / "score.json").unlink()
    fleet.replace(fleet.reward, shift=10.0)
    scored = result(fleet.resume("--until", "score"), "score")
    (words,) = scored["news"]
    assert words.startswith("the reward model stub/reward gives other rewards")
    rewards = read_scores(Path(scored["select"]["path"]))
    assert all(reward > 5 for reward in rewards.values())
    assert not result(fleet.resume(), "gate")["promote"]


def as_an_earlier_release_left_it(fleet: Fleet, run: RunDir) -> None:
    """Delete the probes, and name the files without the probes' id."""
    draws = fleet.folder / "draws"
    shutil.rmtree(draws / "probes")
    (base,) = draws.glob("base-*.jsonl")
    model = fleet.variables["DISTILL_TRAINING__MODEL"]
    base.rename(sample_file(draws, base=model, served_by="tgi", adapter=None, max_tokens=48))
    Path(result(run, "score")["select"]["path"]).rename(_file(draws, "stub/reward", ""))


def gain(run: RunDir) -> float:
    """Return the difference between the checkpoint at N − 1 and the base at N."""
    verdict = json.loads((run.path / "verdict.json").read_bytes())
    return float(verdict["candidates"][0]["trials"][0]["difference"]["mean"])


def result(run: RunDir, step: str) -> dict[str, Any]:
    found = run.result(step)
    assert found is not None
    return found
