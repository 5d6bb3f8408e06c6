"""Scoring of samples; rewards are kept in files of one reward model, one line a distinct answer.

The scorer is the gateway's (in this process or a server, as GATEWAY_REWARD__… says), or the judge. An interrupted run
is continued, and answers scored by an earlier night are not scored again as long as the model gives the same rewards to
the probes: other weights behind the same name get a file of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from distill.errors import DataError, EvaluationError, SettingsError
from distill.evaluation.behaviours import recognise
from distill.evaluation.curve import Floats
from distill.evaluation.reward_probes import rewards_of_probes, same_rewards, tolerance, wait_until_ready
from distill.evaluation.samples import Sample, SampleSet
from distill.evaluation.scored import ScoredSamples, TextStatistics
from distill.evaluation.workers import run_workers
from distill.run_dir import appending, whole_lines
from gateway.errors import GatewayError, RewardError
from gateway.reward.build import build_scorer
from gateway.reward.local import LocalScorer
from gateway.settings import RewardSettings
from gateway.types import Scorer

SCORES = "scores-*.jsonl"
"""Files of rewards in the store of samples."""

_IN_FLIGHT = 128
_CHECKED = 8  # rewards of an earlier release that are requested again
_ATTEMPTS = 3
_RETRY_WAIT_S = 1.0
_READY_TIMEOUT_S = 30.0
_REWARD_TIMEOUT_S = 120.0  # no caller waits for it

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Scores:
    """The reward model, its file of rewards, the number of missing ones, and news for the operator in words."""

    model: str
    path: Path
    missing: int
    news: tuple[str, ...] = ()


def judge_settings(reward: RewardSettings, model: str, adapter: Path | None) -> RewardSettings | None:
    """Return the settings of the held-out reward model, or None if no judge is configured.

    Args:
        reward: The selecting model's settings; device and limits are the judge's too.
        model: The judge's backbone; empty: the selecting model's.
        adapter: The judge's adapter.

    Raises:
        SettingsError: The judge is the selecting model, or has no backbone or adapter.
    """
    if not model and adapter is None:
        return None
    backbone = model or reward.model
    if not backbone:
        raise SettingsError("the judge needs a backbone: set DISTILL_EVALUATION__JUDGE_MODEL")
    if backbone == reward.model and adapter_digest(adapter) == adapter_digest(reward.adapter):
        raise SettingsError("the judge is the selecting model: that proves nothing")
    return reward.model_copy(update={"model": backbone, "adapter": adapter, "url": ""})


def adapter_digest(adapter: Path | None) -> str:
    """Return the SHA-256 of all files in an adapter's folder, not of the weights alone; empty without an adapter.

    Raises:
        SettingsError: There is no adapter in the folder.
    """
    if adapter is None:
        return ""
    if not (adapter / "adapter_model.safetensors").is_file():
        raise SettingsError(f"there is no adapter in {adapter}")
    digest = hashlib.sha256()
    for file in sorted(path for path in adapter.iterdir() if path.is_file()):
        digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


async def score_samples(
    settings: RewardSettings,
    samples: Sequence[Sample],
    folder: Path,
    *,
    on_begin: Callable[[Scores, int], None] = lambda _, __: None,
    on_scored: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Score the samples whose rewards the folder lacks.

    Args:
        settings: The model or the server.
        samples: In any order; equal answers are scored once.
        folder: The store, with one file of rewards a reward model.
        on_begin: Called once before scoring, with the value to be returned and the tokens of the missing answers.
        on_scored: Called with the number of samples whose reward is now known.

    Raises:
        SettingsError: No reward model is configured, or it cannot be loaded.
        EvaluationError: Scoring failed; rewards up to then are kept.
        DataError: The file of rewards is malformed or cannot be written.
    """
    patient = settings.model_copy(update={"timeout_s": max(settings.timeout_s, _REWARD_TIMEOUT_S)})
    scorer = build_scorer(patient)
    if scorer is None:
        raise SettingsError("no reward model: set GATEWAY_REWARD__MODEL or GATEWAY_REWARD__URL")
    try:
        await _until_ready(scorer)
        path, news = await _rewards_file(scorer, settings, folder, samples)
        known = read_scores(path)
        waiting = Counter(sample.answer_key for sample in samples)
        on_scored(sum(count for key, count in waiting.items() if key in known))
        new = {sample.answer_key: sample for sample in samples}
        missing = [(key, sample) for key, sample in new.items() if key not in known]
        scores = Scores(scorer.name, path, len(missing), news)
        on_begin(scores, sum(sample.completion_tokens for _, sample in missing))
        await _score(scorer, missing, path, known, lambda key: on_scored(waiting[key]))
        return scores
    finally:
        await scorer.aclose()


def score_set(
    policy: str,
    temperature: float,
    samples: SampleSet,
    rewards: Mapping[str, float],
    judge_rewards: Mapping[str, float] | None = None,
) -> ScoredSamples:
    """Join a sample set with its rewards, given by answer as ``read_scores`` returns them."""

    def matrix(by_answer: Mapping[str, float]) -> Floats:
        return np.array([[by_answer[sample.answer_key] for sample in row] for row in samples])

    judge_PM = None if judge_rewards is None else matrix(judge_rewards)
    return ScoredSamples(policy, temperature, matrix(rewards), TextStatistics.of(samples), judge_PM)


def read_scores(path: Path) -> dict[str, float]:
    """Read rewards by answer key. A last line that a killed run left unfinished is skipped; a missing file is empty.

    Raises:
        DataError: The file cannot be read, or a line is not a score.
    """
    rewards: dict[str, float] = {}
    for number, line in enumerate(whole_lines(path) if path.exists() else [], start=1):
        try:
            key, reward = json.loads(line)
            rewards[str(key)] = float(reward)
            if not math.isfinite(rewards[str(key)]):
                raise ValueError("not finite")
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not a score: remove the line to score it again") from error
    return rewards


async def _score(
    scorer: Scorer,
    missing: Iterable[tuple[str, Sample]],
    path: Path,
    known: dict[str, float],
    on_score: Callable[[str], None],
) -> None:
    # Longest first: texts of similar length share a batch, so there is little padding, and the progress bar errs early.
    ordered = sorted(missing, key=lambda item: len(item[1].prompt.key) + len(item[1].text), reverse=True)
    queue = iter(ordered)
    with appending(path) as sink:

        async def worker() -> None:
            for key, sample in queue:
                known[key] = await _reward(scorer, sample)
                sink.write(json.dumps([key, known[key]]).encode() + b"\n")
                sink.flush()
                on_score(key)

        try:
            await run_workers(worker, _IN_FLIGHT, GatewayError, OSError)
        except GatewayError as error:
            raise EvaluationError(f"scoring stopped: {error}") from error


async def _reward(scorer: Scorer, sample: Sample) -> float:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return (await scorer.score(sample.prompt.messages, sample.text)).reward
        except RewardError as error:
            log.warning("score_failed", attempt=attempt, reason=error.message)
            if attempt == _ATTEMPTS:
                raise
            await asyncio.sleep(_RETRY_WAIT_S * attempt)
    raise AssertionError("unreachable")


async def _until_ready(scorer: Scorer) -> None:
    """Wait until the model is loaded or the server is ready.

    Raises:
        SettingsError: The model cannot be loaded.
        EvaluationError: The server is not ready in time.
    """
    try:
        if isinstance(scorer, LocalScorer):
            await scorer.loaded()
    except GatewayError as error:
        raise SettingsError(error.message) from error
    try:
        await wait_until_ready(scorer, _READY_TIMEOUT_S)
    except RewardError as error:
        raise EvaluationError(error.message) from error


async def _rewards_file(
    scorer: Scorer, settings: RewardSettings, folder: Path, samples: Sequence[Sample]
) -> tuple[Path, tuple[str, ...]]:
    """Return the file of this model's rewards, found by its rewards for the probes, and what changed in words."""
    name, adapter = scorer.name, adapter_digest(settings.adapter) if settings.model else ""
    try:
        rewards = await rewards_of_probes(scorer)
        behaviour = recognise(folder, "rewards", {"model": name, "adapter": adapter}, rewards, same_rewards)
        path, unprobed = _file(folder, name, adapter, behaviour.id), _file(folder, name, adapter)
        if not path.exists() and unprobed.exists():
            alike = await _gives_same_rewards(scorer, read_scores(unprobed), samples, tolerance(rewards))
            if alike:
                os.replace(unprobed, path)
            way = (
                "reused: some were scored again and are the same"
                if alike
                else "not reused: some differ when scored again"
            )
            return path, (f"rewards by {name} of an earlier release are {way}",)
    except RewardError as error:
        raise EvaluationError(f"scoring stopped: {error.message}") from error
    changed = f"the reward model {name} gives other rewards than in earlier nights: every answer is scored again"
    return path, (changed,) if behaviour.changed else ()


async def _gives_same_rewards(
    scorer: Scorer, known: dict[str, float], samples: Sequence[Sample], within: float
) -> bool:
    """Score a few of tonight's answers again; return True if the rewards kept by an earlier release are the same.

    Raises:
        RewardError: The model gives no rewards.
    """
    keys = {sample.answer_key: sample for sample in samples}
    some = [key for key in keys if key in known][:_CHECKED]
    again = await asyncio.gather(*(scorer.score(keys[key].prompt.messages, keys[key].text) for key in some))
    return bool(some) and all(abs(known[key] - score.reward) <= within for key, score in zip(some, again, strict=True))


def _file(folder: Path, name: str, adapter: str, behaviour: str = "") -> Path:
    """Return the file of a model's rewards; releases without probes had no ``behaviour``."""
    identity = json.dumps([name, adapter, *([behaviour] if behaviour else [])]).encode()
    return folder / f"scores-{hashlib.blake2b(identity, digest_size=6).hexdigest()}.jsonl"
