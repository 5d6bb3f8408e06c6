"""The steps that measure: draw samples from both policies on held-out prompts, and score them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from distill.errors import EvaluationError
from distill.evaluation import sample_store, scoring
from distill.evaluation.samples import Sample, read_samples
from distill.evaluation.scoring import Scores, read_scores
from distill.nightly import checkpoint_adapters, served_model
from distill.nightly.context import Night
from distill.nightly.results import DrawResult, GateResult, RewardsFile, ScoreResult, TrainResult, read_result
from distill.nightly.sample_plan import MeasuredPolicy, base_policy, compared_policies, drawn_base, drawn_policies
from gateway.settings import BackendSettings, RewardSettings


def draw(night: Night, trained: TrainResult) -> DrawResult:
    """Draw the samples that are missing: both policies on the same held-out prompts, earlier nights' ones reused."""
    adapters = checkpoint_adapters.publish_candidates(night, trained.checkpoints)
    candidates = {checkpoint: adapter.name for checkpoint, adapter in adapters.items()}
    with checkpoint_adapters.served(night, adapters.values()) as backend:
        behaviour, news = served_model.recognise(night, backend)
        policies = [*compared_policies(night, candidates, behaviour), *base_policy(night, behaviour)]
        reusable = [policy.plan.adapter for policy in policies if policy.side == "old"]
        news += served_model.adopt_unprobed_samples(night, backend, reusable, behaviour)
        news = _print_news_once(night, f"behaviour-{behaviour}", news)
        reused = sum(policy.plan.size - sample_store.count_missing(policy.plan, policy.path) for policy in policies)
        begun = night.run.write_once("draw", {"reused": reused, "tokens_before": _stored_tokens(policies)})
        refused = _draw_missing(night, backend, policies)
    measured = len(policies[0].plan.prompts) - len(refused)
    if measured < 1:
        raise EvaluationError("the backend refuses every held-out prompt as invalid")
    if refused:
        night.print(f"{len(refused)} prompts are left out: the backend refuses them (too long?)")
    return DrawResult(
        tokens=_stored_tokens(policies) - begun["tokens_before"],
        reused=begun["reused"],
        refused=sorted(refused),
        prompts=measured,
        candidates=candidates,
        behaviour=behaviour,
        news=news,
    )


def score(night: Night, drawn: DrawResult) -> ScoreResult:
    """Score every distinct sample once with the model that selects, and with the judge if one is set."""
    settings = night.settings.evaluation
    policies = [*drawn_policies(night, drawn), *drawn_base(night, drawn)]
    samples = [each for policy in policies for each in _usable_samples(policy, drawn)]
    news: list[str] = []
    select = _score(night, "select", night.gateway.reward, samples, news)
    judge_settings = scoring.judge_settings(night.gateway.reward, settings.judge_model, settings.judge_adapter)
    judge = None if judge_settings is None else _score(night, "judge", judge_settings, samples, news)
    tokens = select.tokens + (0 if judge is None else judge.tokens)
    return ScoreResult(select, judge, tokens, news)


def unmark_steps_that_lost_files(night: Night) -> None:
    """Before the gate, remove the markers of draw and score if samples or rewards were deleted, forgotten or edited."""
    drawn, scored = read_result(night.run, DrawResult), read_result(night.run, ScoreResult)
    if drawn is None or night.run.result(GateResult.step) is not None:
        return
    policies = [*drawn_policies(night, drawn), *drawn_base(night, drawn)]
    if lost := sum(sample_store.count_missing(policy.plan, policy.path) for policy in policies):
        night.print(f"{lost} draws are not there any more: they are drawn again")
        night.run.unmark(DrawResult.step)
        night.run.unmark(ScoreResult.step)
    elif scored is not None and (lost := _missing_rewards(policies, drawn, scored)):
        night.print(f"{lost} draws have no reward any more: they are scored again")
        night.run.unmark(ScoreResult.step)


def _draw_missing(night: Night, backend: BackendSettings, policies: Sequence[MeasuredPolicy]) -> set[str]:
    """Draw the missing samples of every policy; return the keys of prompts that the backend refuses."""
    refused: set[str] = set()
    for policy in policies:
        missing = sample_store.count_missing(policy.plan, policy.path)
        with night.bar(f"drawing {policy.name}", policy.plan.size) as advance:
            advance(policy.plan.size - missing)
            refused |= asyncio.run(
                sample_store.extend(
                    backend,
                    policy.plan,
                    policy.path,
                    concurrency=night.settings.evaluation.concurrency,
                    on_sample=lambda _: advance(1),
                )
            )
    return refused


def _score(night: Night, role: str, reward: RewardSettings, samples: Sequence[Sample], news: list[str]) -> RewardsFile:
    tokens_scored = 0

    def begin(scores: Scores, tokens: int) -> None:
        nonlocal tokens_scored
        # Named by the file of rewards: a model that was replaced between two attempts scores everything again.
        name = f"score-{role}-{scores.path.stem}"
        tokens_scored = night.run.write_once(name, {"tokens": tokens})["tokens"]
        news.extend(_print_news_once(night, f"{name}-news", list(scores.news)))

    folder = night.settings.evaluation.draws_dir
    with night.bar("scoring" if role == "select" else "judging", len(samples)) as advance:
        scores = asyncio.run(scoring.score_samples(reward, samples, folder, on_begin=begin, on_scored=advance))
    return RewardsFile(scores.model, scores.path, tokens_scored)


def _missing_rewards(policies: Sequence[MeasuredPolicy], drawn: DrawResult, scored: ScoreResult) -> int:
    samples = [each for policy in policies for each in _usable_samples(policy, drawn)]
    keys = [each.answer_key for each in samples]
    return sum(key not in rewards for rewards in (read_scores(each.path) for each in scored.files) for key in keys)


def _usable_samples(policy: MeasuredPolicy, drawn: DrawResult) -> list[Sample]:
    """Return a policy's stored samples, also those on other nights' prompts, without refused prompts."""
    refused = set(drawn.refused)
    return [
        each for each in read_samples(policy.path) if each.prompt.key not in refused and each.index < policy.plan.count
    ]


def _stored_tokens(policies: Sequence[MeasuredPolicy]) -> int:
    """Return the tokens of all samples in the policies' files, those of other nights included."""
    return sum(
        each.completion_tokens
        for path in {policy.path for policy in policies if policy.path.exists()}
        for each in read_samples(path)
    )


def _print_news_once(night: Night, name: str, news: list[str]) -> list[str]:
    """Print what changed since earlier nights; on resume, print and return the news of the first attempt."""
    first: list[str] = night.run.write_once(name, {"news": news})["news"]
    for text in first:
        night.print(text)
    return first
