"""The rewards of samples, kept beside them: one line a distinct answer, by the model that gave it.

The scorer is the one the gateway serves with (in this process or a server, as GATEWAY_REWARD__… says), or the judge.
A run that ends in the middle is continued, and what an earlier night scored is not scored again, as long as the model
still gives the same rewards to the probes: other weights behind one name have a file of their own.
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
from distill.evaluation.behaviours import meet
from distill.evaluation.curve import Floats
from distill.evaluation.reward_probes import rewards_of_probes, same_rewards, tolerance
from distill.evaluation.samples import Sample, SampleSet
from distill.evaluation.scored import ScoredSamples, TextStatistics
from distill.run_dir import appending, whole_lines
from gateway.errors import GatewayError, RewardError
from gateway.reward.build import build_scorer
from gateway.reward.local import LocalScorer
from gateway.settings import RewardSettings
from gateway.types import Scorer

SCORES = "scores-*.jsonl"
"""Files of rewards in the folder of samples."""

_IN_FLIGHT = 128
_CHECKED = 8  # rewards of an earlier release that are asked for again
_ATTEMPTS = 3
_RETRY_WAIT_S = 1.0
_READY_TIMEOUT_S = 30.0
_POLL_S = 0.2
_REWARD_TIMEOUT_S = 120.0  # nobody waits for it

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards: the model that gives them, their file, how many are missing, and in words what changed since then."""

    model: str
    path: Path
    missing: int
    news: tuple[str, ...] = ()


def judge_settings(reward: RewardSettings, model: str, adapter: Path | None) -> RewardSettings | None:
    """Where the held-out reward model is, or None where none is asked.

    Args:
        reward: The selecting model's; device and limits are the judge's too.
        model: The judge's backbone; empty is the selecting model's own.
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
    """SHA-256 of all that an adapter's folder holds, for its weights are not all that makes a reward; empty for none.

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
    """Rewards of every sample; those that the folder does not hold yet are asked for and added.

    Args:
        settings: Which model, or which server.
        samples: In any order; equal answers are scored once.
        folder: Of score files, one a reward model.
        on_begin: Told once, before any is scored, what is returned, and the tokens of the answers that are missing.
        on_scored: Told how many samples are settled by what just came.

    Raises:
        SettingsError: No reward model is configured, or it cannot be loaded.
        EvaluationError: No reward could be had; those that were are kept.
        DataError: The folder's file is malformed or cannot be written.
    """
    patient = settings.model_copy(update={"timeout_s": max(settings.timeout_s, _REWARD_TIMEOUT_S)})
    scorer = build_scorer(patient)
    if scorer is None:
        raise SettingsError("no reward model: set GATEWAY_REWARD__MODEL or GATEWAY_REWARD__URL")
    try:
        await _until_ready(scorer)
        path, news = await _recognised(scorer, settings, folder, samples)
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
    """Rewards by answer; a last line that a killed run left unfinished is none, and a missing file is empty.

    Raises:
        DataError: The file cannot be read, or a line is no score.
    """
    rewards: dict[str, float] = {}
    for number, line in enumerate(whole_lines(path) if path.exists() else [], start=1):
        try:
            key, reward = json.loads(line)
            rewards[str(key)] = float(reward)
            if not math.isfinite(rewards[str(key)]):
                raise ValueError("no finite number")
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number} is no score: remove the line, and it is scored again") from error
    return rewards


async def _score(
    scorer: Scorer,
    missing: Iterable[tuple[str, Sample]],
    path: Path,
    known: dict[str, float],
    on_score: Callable[[str], None],
) -> None:
    # Longest first: texts of one length share a batch, so little is padding, and time left is never underrated.
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
            async with asyncio.TaskGroup() as group:
                for _ in range(_IN_FLIGHT):
                    group.create_task(worker())
        except ExceptionGroup as errors:  # not except*: early Python 3.11 wraps what is raised there once more
            if (failed := errors.subgroup(GatewayError)) is not None:
                raise EvaluationError(f"scoring stopped: {_first(failed)}") from errors
            if (full := errors.subgroup(OSError)) is not None:
                raise full.exceptions[0] from errors
            raise


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
    """Wait while the model loads; give up on a server that stays away.

    Raises:
        SettingsError: The model cannot be loaded.
        EvaluationError: The server stays away.
    """
    try:
        if isinstance(scorer, LocalScorer):
            await scorer.loaded()
    except GatewayError as error:
        raise SettingsError(error.message) from error
    deadline = asyncio.get_running_loop().time() + _READY_TIMEOUT_S
    while not (state := await scorer.readiness()).ready:
        if asyncio.get_running_loop().time() > deadline:
            raise EvaluationError(f"the reward model is not ready: {state.detail}")
        await asyncio.sleep(_POLL_S)


async def _recognised(
    scorer: Scorer, settings: RewardSettings, folder: Path, samples: Sequence[Sample]
) -> tuple[Path, tuple[str, ...]]:
    """The file of this model's rewards, by what it says to the probes, and in words what changed."""
    name, adapter = scorer.name, adapter_digest(settings.adapter) if settings.model else ""
    try:
        rewards = await rewards_of_probes(scorer)
        met = meet(folder, "rewards", {"model": name, "adapter": adapter}, rewards, same_rewards)
        path, unprobed = _file(folder, name, adapter, met.id), _file(folder, name, adapter)
        if not path.exists() and unprobed.exists():
            alike = await _gives_again(scorer, read_scores(unprobed), samples, tolerance(rewards))
            if alike:
                os.replace(unprobed, path)
            way = "taken over: some were asked for again and are the same" if alike else "not taken over: all is anew"
            return path, (f"rewards by {name} of an earlier release are {way}",)
    except RewardError as error:
        raise EvaluationError(f"scoring stopped: {error.message}") from error
    changed = f"the reward model {name} gives other rewards than in earlier nights: every answer is scored anew"
    return path, (changed,) if met.changed else ()


async def _gives_again(scorer: Scorer, known: dict[str, float], samples: Sequence[Sample], within: float) -> bool:
    """Whether the model gives again what a release without probes kept, as far as a few of tonight's answers tell.

    Raises:
        RewardError: The model gives no rewards.
    """
    keys = {sample.answer_key: sample for sample in samples}
    some = [key for key in keys if key in known][:_CHECKED]
    again = await asyncio.gather(*(scorer.score(keys[key].prompt.messages, keys[key].text) for key in some))
    return bool(some) and all(abs(known[key] - score.reward) <= within for key, score in zip(some, again, strict=True))


def _file(folder: Path, name: str, adapter: str, behaviour: str = "") -> Path:
    """Rewards of a model; releases before there were probes knew no behaviour."""
    identity = json.dumps([name, adapter, *([behaviour] if behaviour else [])]).encode()
    return folder / f"scores-{hashlib.blake2b(identity, digest_size=6).hexdigest()}.jsonl"


def _first(errors: BaseExceptionGroup[BaseException]) -> str:
    first = errors.exceptions[0]
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return str(first)
