"""The samples of a night with their rewards, as the gate and the report read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from distill.evaluation import draws
from distill.evaluation.curve import Floats
from distill.evaluation.drawn import Drawn, describe
from distill.evaluation.gate import Anchor
from distill.evaluation.sample import Draw, read_draws
from distill.evaluation.scoring import answer_key, read_scores
from distill.nightly.checkpoint_adapters import serving_adapter
from distill.nightly.context import Night
from distill.nightly.results import DrawResult, ScoreResult
from distill.nightly.sample_plan import MeasuredPolicy, drawn_base, drawn_policies


@dataclass(frozen=True)
class PolicySamples:
    """A policy's samples at one temperature with their rewards. Shapes: P prompts, M samples of each."""

    policy: MeasuredPolicy
    temperature: float
    samples: list[list[Draw]]
    rewards: Mapping[str, float]
    judge_rewards: Mapping[str, float] | None

    @cached_property
    def rewards_PM(self) -> Floats:
        """Rewards of the model that selects."""
        return _reward_matrix(self.samples, self.rewards)

    @cached_property
    def tokens_PM(self) -> Floats:
        return np.array([[each.completion_tokens for each in prompt] for prompt in self.samples], dtype=np.float64)

    @cached_property
    def scored(self) -> Drawn:
        """The arrays that the gate compares."""
        truncated_PM = np.array([[each.finish_reason == "length" for each in prompt] for prompt in self.samples])
        texts = [[each.text for each in prompt] for prompt in self.samples]
        return Drawn(
            rewards_PM=self.rewards_PM,
            answers=describe(texts, self.tokens_PM, truncated_PM.astype(np.float64)),
            judge_PM=None if self.judge_rewards is None else _reward_matrix(self.samples, self.judge_rewards),
        )

    @property
    def conversations(self) -> list[str]:
        """The key of each prompt's conversation."""
        return [prompt[0].question.key for prompt in self.samples]


def read_samples(night: Night, drawn: DrawResult, scored: ScoreResult) -> list[PolicySamples]:
    """Return the compared policies' samples with their rewards, by policy, then temperature."""
    return _read(drawn_policies(night, drawn), scored)


def read_remaining_samples(night: Night, drawn: DrawResult, scored: ScoreResult) -> list[PolicySamples]:
    """Return the same for the report, without prompts that lost samples or rewards since the gate decided."""
    policies, rewards = drawn_policies(night, drawn), [read_scores(each.path) for each in scored.files]
    complete = {prompt.key for prompt in policies[0].design.questions}
    for policy in policies:
        stored = {
            each.cell
            for each in read_draws(policy.path)
            if all(answer_key(each.question.messages, each.text) in known for known in rewards)
        }
        complete -= {prompt.key for prompt, *place in policy.design.cells() if (prompt.key, *place) not in stored}
    if len(complete) < 2:
        return []
    return _read([_on_prompts(policy, complete) for policy in policies], scored)


def read_anchor(night: Night, drawn: DrawResult, scored: ScoreResult) -> Anchor | None:
    """Return the base's samples, below which no night may fall; None while the base serves."""
    serving = serving_adapter(night)
    if serving is None:
        return None
    samples = _read(drawn_base(night, drawn), scored)
    return Anchor(serving.manifest.n_base, {each.temperature: each.scored for each in samples})


def _on_prompts(policy: MeasuredPolicy, keys: set[str]) -> MeasuredPolicy:
    prompts = [prompt for prompt in policy.design.questions if prompt.key in keys]
    return replace(policy, design=replace(policy.design, questions=prompts))


def _read(policies: Sequence[MeasuredPolicy], scored: ScoreResult) -> list[PolicySamples]:
    rewards = read_scores(scored.select.path)
    judge_rewards = None if scored.judge is None else read_scores(scored.judge.path)
    return [
        PolicySamples(policy, temperature, samples, rewards, judge_rewards)
        for policy in policies
        for temperature, samples in draws.drawn(policy.design, policy.path).items()
    ]


def _reward_matrix(samples: list[list[Draw]], rewards: Mapping[str, float]) -> Floats:
    return np.array([[rewards[answer_key(one.question.messages, one.text)] for one in prompt] for prompt in samples])
