"""The second half of a night: both policies draw on held-out prompts, and the reward models score what they said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from distill.dataset.files import read_held_out
from distill.dataset.split import first_user_text
from distill.errors import EvaluationError
from distill.evaluation import draws, scoring
from distill.evaluation.curve import Floats
from distill.evaluation.drawn import Drawn, describe
from distill.evaluation.gate import Anchor
from distill.evaluation.sample import Design, Draw, Question, read_draws
from distill.evaluation.scoring import Scores, answer_key
from distill.nightly import candidates, identity
from distill.nightly.context import Night, Result
from distill.nightly.results import check_result
from distill.nightly.steps.data import held_out_file
from distill.report.facts import Side
from distill.settings import EvaluationSettings
from gateway.files import write_atomically
from gateway.settings import BackendSettings, RewardSettings

DEFAULT_TEMPERATURE = 1.0
"""What a backend samples at when neither caller nor policy says: TGI's and vLLM's own default."""


@dataclass(frozen=True)
class Source:
    """One policy that draws: the serving one, or a checkpoint. ``name`` is what the report calls it."""

    side: Side
    name: str
    path: Path
    design: Design


@dataclass(frozen=True)
class Sampled:
    """One policy's draws at one temperature, with what the reward models say. Shapes: P prompts, M draws."""

    source: Source
    temperature: float
    draws: list[list[Draw]]
    rewards: Mapping[str, float]
    judged: Mapping[str, float] | None

    @cached_property
    def rewards_PM(self) -> Floats:
        """Rewards of the model that selects."""
        return _matrix(self.draws, self.rewards)

    @cached_property
    def tokens_PM(self) -> Floats:
        """Lengths of the answers."""
        return np.array([[draw.completion_tokens for draw in prompt] for prompt in self.draws], dtype=np.float64)

    @cached_property
    def drawn(self) -> Drawn:
        """What the gate is given."""
        truncated_PM = np.array([[draw.finish_reason == "length" for draw in prompt] for prompt in self.draws])
        texts = [[draw.text for draw in prompt] for prompt in self.draws]
        return Drawn(
            rewards_PM=self.rewards_PM,
            answers=describe(texts, self.tokens_PM, truncated_PM.astype(np.float64)),
            judge_PM=None if self.judged is None else _matrix(self.draws, self.judged),
        )


def draw(night: Night) -> Result:
    """Both policies answer the same held-out prompts; what any night drew of the serving policy is not drawn again."""
    adapters = candidates.prepare(night)
    names = {checkpoint: adapter.name for checkpoint, adapter in adapters.items()}
    with candidates.serving(night, adapters) as backend:
        behaviour, news = identity.behaviour_tonight(night, backend)
        plan = [*sources(night, names, behaviour), *anchor_sources(night, behaviour)]
        kept = [source.design.adapter for source in plan if source.side == "old"]
        news += identity.take_over(night, backend, kept, behaviour)
        news = _told_once(night, f"behaviour-{behaviour}", news)
        reused = sum(each.design.size - draws.missing(each.design, each.path) for each in plan)
        begun = _once(night, "draw", {"reused": reused, "tokens_before": _tokens_kept(plan)})
        refused = _draw_each(night, backend, plan)
    measured = len(plan[0].design.questions) - len(refused)
    if measured < 1:
        raise EvaluationError("the backend refuses every held-out prompt as invalid")
    if refused:
        night.say(f"{len(refused)} prompts are left out: the backend refuses them (too long?)")
    return {
        "tokens": _tokens_kept(plan) - begun["tokens_before"],
        "reused": begun["reused"],
        "refused": sorted(refused),
        "prompts": measured,
        "candidates": names,
        "behaviour": behaviour,
        "news": news,
    }


def _draw_each(night: Night, backend: BackendSettings, plan: Sequence[Source]) -> set[str]:
    """Draw what is missing of every source; returns the keys of questions that the backend refuses."""
    refused: set[str] = set()
    for source in plan:
        left = draws.missing(source.design, source.path)
        with night.bar(f"drawing {source.name}", source.design.size) as advance:
            advance(source.design.size - left)
            added = asyncio.run(
                draws.draw_design(
                    backend,
                    source.design,
                    source.path,
                    concurrency=night.settings.evaluation.concurrency,
                    on_draw=advance,
                )
            )
        refused |= added.refused
    return refused


def score(night: Night) -> Result:
    """The model that selects, and the judge where there is one, score every distinct answer once."""
    settings = night.settings.evaluation
    every = [each for source in [*_sources(night), *_anchor_sources(night)] for each in _kept(night, source)]
    judge = scoring.judge_settings(night.gateway.reward, settings.judge_model, settings.judge_adapter)
    found: dict[str, Any] = {"judge": None}
    news: list[str] = []
    for role, reward in (("select", night.gateway.reward), ("judge", judge)):
        if reward is not None:
            found[role] = _scored(night, role, reward, every, news)
    return {**found, "tokens": sum(one["tokens"] for one in found.values() if one), "news": news}


def run_again_what_lost_files(night: Night) -> None:
    """Before the gate, have draws or rewards made again that are not there any more: deleted, forgotten or edited."""
    drawn, scored = night.run.result("draw"), night.run.result("score")
    if drawn is None or night.run.result("gate") is not None:
        return
    check_result("draw", drawn, night.run.marker("draw"))
    if scored is not None:
        check_result("score", scored, night.run.marker("score"))
    night.results["draw"] = drawn
    every = [*_sources(night), *_anchor_sources(night)]
    lost = sum(draws.missing(_without_refused(night, source), source.path) for source in every)
    if lost:
        night.say(f"{lost} draws are not there any more: they are drawn again")
        night.run.unmark("draw")
        night.run.unmark("score")
    elif scored is not None and (lost := _rewards_missing(night, scored, every)):
        night.say(f"{lost} draws have no reward any more: they are scored again")
        night.run.unmark("score")


def _rewards_missing(night: Night, scored: Result, every: Sequence[Source]) -> int:
    keys = [answer_key(each.question.messages, each.text) for source in every for each in _kept(night, source)]
    return sum(key not in rewards for rewards in map(_rewards, _scored_by(scored)) for key in keys)


def _scored_by(scored: Result) -> list[dict[str, Any]]:
    """What each reward model left: the one that selects, and the judge where there is one."""
    return [scored[role] for role in ("select", "judge") if scored.get(role)]


def _rewards(scored: Mapping[str, Any]) -> dict[str, float]:
    return scoring.read_scores(Path(scored["path"]))


def sampled(night: Night) -> list[Sampled]:
    """Both policies' draws with their rewards, once they are drawn and scored: by source, then temperature."""
    return _sampled(night, _sources(night))


def sampled_still(night: Night) -> list[Sampled]:
    """The same for the report, without prompts that lost draws or rewards since the gate decided."""
    every, rewards = _sources(night), [_rewards(each) for each in _scored_by(night.results["score"])]
    whole = {question.key for question in every[0].design.questions}
    for source in every:
        cells = {
            each.cell
            for each in _kept(night, source)
            if all(answer_key(each.question.messages, each.text) in known for known in rewards)
        }
        whole -= {question.key for question, *place in source.design.cells() if (question.key, *place) not in cells}
    return _sampled(night, every, whole) if len(whole) > 1 else []


def anchor(night: Night) -> Anchor | None:
    """What no night may lose, as drawn and scored; None where the base still serves."""
    found = {each.temperature: each.drawn for each in _sampled(night, _anchor_sources(night))}
    serving = candidates.serving_adapter(night)
    return Anchor(serving.manifest.n_base, found) if serving is not None else None


def _sampled(night: Night, every: Sequence[Source], keys: Collection[str] | None = None) -> list[Sampled]:
    """Read draws with their rewards, of the questions with these keys; of all where none are given."""
    scores = night.results["score"]
    rewards = _rewards(scores["select"])
    judged = scores["judge"] and _rewards(scores["judge"])
    found = []
    for source in every:
        design = _without_refused(night, source)
        if keys is not None:
            design = replace(design, questions=[each for each in design.questions if each.key in keys])
        by_temperature = draws.drawn(design, source.path)
        found += [Sampled(source, t, prompts, rewards, judged) for t, prompts in by_temperature.items()]
    return found


def sources(night: Night, names: Mapping[str, str], behaviour: str) -> list[Source]:
    """The policies that draw, the serving one first. The same for a night that is taken up again.

    Args:
        night: The night.
        names: Each checkpoint's name as an adapter.
        behaviour: The id of what answers, from ``identity.behaviour_tonight``.
    """
    settings = night.settings.evaluation
    old = night.serving.adapter
    old_temperatures = temperatures(settings, night.serving.default_temperature)
    new_temperatures = settings.candidate_temperatures or (serving_temperature(night),)
    return [
        _source(night, "old", old or "base", old, old_temperatures, settings.draws_dir, behaviour),
        *(
            _source(night, "new", checkpoint, adapter, new_temperatures, night.run.path / "draws", behaviour)
            for checkpoint, adapter in names.items()
        ),
    ]


def anchor_sources(night: Night, behaviour: str) -> list[Source]:
    """The base, where an adapter serves: nights before drew it on all prompts but those that are new."""
    serving = candidates.serving_adapter(night)
    if serving is None:
        return []
    settings = night.settings.evaluation
    asked = temperatures(settings, night.serving.default_temperature)
    least = serving.manifest.n_base
    return [_source(night, "old", "base", None, asked, settings.draws_dir, behaviour, least_draws=least)]


def keep_draws(night: Night, checkpoint: str) -> None:
    """Take a checkpoint's draws over into the store that outlives the night."""
    settings = night.settings.evaluation
    path = next(source.path for source in _sources(night) if source.name == checkpoint)
    draws.adopt(path, settings.draws_dir / path.name, max_tokens=settings.max_tokens)


def questions(night: Night) -> list[Question]:
    """The held-out prompts that are measured: the first by hash, so much the same ones every night."""
    prompts = read_held_out(held_out_file(night.run))[: night.settings.evaluation.prompts]
    return [question_of(prompt.messages) for prompt in prompts]


def question_of(messages: Sequence[Any]) -> Question:
    """A conversation as a question; one that is a single user message in words is known by that alone."""
    text = first_user_text(messages)
    alone = len(messages) == 1 and messages[0] == {"role": "user", "content": text}
    return Question("", text, None if alone else list(messages))


def serving_temperature(night: Night) -> float:
    """The temperature that callers who set none get."""
    temperature = night.serving.default_temperature
    return DEFAULT_TEMPERATURE if temperature is None else temperature


def temperatures(settings: EvaluationSettings, default: float | None) -> list[float]:
    """Temperatures of the serving policy's draws: those asked for, and the one that it serves at."""
    return sorted({*settings.temperatures, DEFAULT_TEMPERATURE if default is None else default})


def _source(
    night: Night,
    side: Side,
    name: str,
    adapter: str | None,
    temperatures: Sequence[float],
    folder: Path,
    behaviour: str,
    *,
    least_draws: int = 0,
) -> Source:
    settings = night.settings.evaluation
    drawer = identity.drawer(night.settings, night.gateway, adapter, behaviour)
    draws_each = max(settings.draws, night.serving.n, least_draws)
    design = Design(questions(night), temperatures, draws_each, settings.max_tokens, adapter=adapter)
    return Source(side, name, drawer.file(folder), design)


def _sources(night: Night) -> list[Source]:
    return sources(night, night.results["draw"]["candidates"], _behaviour(night))


def _anchor_sources(night: Night) -> list[Source]:
    return anchor_sources(night, _behaviour(night))


def _behaviour(night: Night) -> str:
    """The id of what answered; a night that an earlier release has drawn knows none."""
    found: str = night.results["draw"].get("behaviour", "")
    return found


def _without_refused(night: Night, source: Source) -> Design:
    """A source's design without the questions that the backend refused."""
    refused = set(night.results["draw"]["refused"])
    kept = [question for question in source.design.questions if question.key not in refused]
    return replace(source.design, questions=kept)


def _kept(night: Night, source: Source) -> list[Draw]:
    refused = set(night.results["draw"]["refused"])
    return [
        each
        for each in read_draws(source.path)
        if each.question.key not in refused and each.index < source.design.draws
    ]


def _scored(night: Night, role: str, reward: RewardSettings, every: Sequence[Draw], news: list[str]) -> dict[str, Any]:
    begun: dict[str, Any] = {}

    def begin(scores: Scores, tokens: int) -> None:
        # By its file: a model that was replaced between two attempts at this night scores everything.
        step = f"score-{role}-{scores.path.stem}"
        begun.update(_once(night, step, {"tokens": tokens}))
        news.extend(_told_once(night, f"{step}-news", list(scores.news)))

    folder = night.settings.evaluation.draws_dir
    with night.bar("scoring" if role == "select" else "judging", len(every)) as advance:
        scores = asyncio.run(scoring.score_draws(reward, every, folder, on_begin=begin, on_scored=advance))
    return {"model": scores.model, "path": str(scores.path), **begun}


def _told_once(night: Night, step: str, news: list[str]) -> list[str]:
    """Say what changed since earlier nights; a night that is taken up again says it again, though it is known now."""
    found: list[str] = _once(night, step, {"news": news})["news"]
    for words in found:
        night.say(words)
    return found


def _tokens_kept(plan: Sequence[Source]) -> int:
    """Tokens of all draws in the files of those who draw tonight, also of other nights."""
    return sum(
        each.completion_tokens
        for path in {source.path for source in plan if source.path.exists()}
        for each in read_draws(path)
    )


def _matrix(prompts: list[list[Draw]], rewards: Mapping[str, float]) -> Floats:
    return np.array([[rewards[answer_key(each.question.messages, each.text)] for each in prompt] for prompt in prompts])


def _once(night: Night, step: str, fact: dict[str, Any]) -> dict[str, Any]:
    """Write a fact when this night first comes to a step, and return that one however often it comes again."""
    path = night.run.path / "draws" / f"begun-{step}.json"
    if not path.exists():
        write_atomically(path, json.dumps(fact).encode())
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found
