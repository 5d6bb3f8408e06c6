"""The samples of a night with their rewards, as the gate and the report read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.evaluation.curve import Floats
from distill.evaluation.gate import Baseline
from distill.evaluation.sample_store import read_sets
from distill.evaluation.samples import SampleSet
from distill.evaluation.samples import read_samples as read_file
from distill.evaluation.scored import ScoredSamples, TextStatistics
from distill.evaluation.scoring import read_scores, score_set
from distill.nightly.checkpoint_adapters import serving_adapter
from distill.nightly.context import Night
from distill.nightly.results import DrawResult, ScoreResult
from distill.nightly.sample_plan import MeasuredPolicy, drawn_base, drawn_policies


@dataclass(frozen=True)
class PolicySamples:
    """A policy's samples at one temperature with their rewards. Shapes: P prompts, M samples of each."""

    policy: MeasuredPolicy
    samples: SampleSet
    scored: ScoredSamples

    @property
    def temperature(self) -> float:
        return self.scored.temperature

    @property
    def rewards_PM(self) -> Floats:
        """Rewards of the model that selects."""
        return self.scored.rewards_PM

    @property
    def texts(self) -> TextStatistics:
        assert self.scored.texts is not None, "score_set computes them"
        return self.scored.texts

    @property
    def conversations(self) -> list[str]:
        """The key of each prompt's conversation."""
        return [row[0].prompt.key for row in self.samples]


def read_samples(night: Night, drawn: DrawResult, scored: ScoreResult) -> list[PolicySamples]:
    """Return the compared policies' samples with their rewards, by policy, then temperature."""
    return _read(drawn_policies(night, drawn), scored)


def read_remaining_samples(night: Night, drawn: DrawResult, scored: ScoreResult) -> list[PolicySamples]:
    """Return the same for the report, without prompts that lost samples or rewards since the gate decided."""
    policies, rewards = drawn_policies(night, drawn), [read_scores(each.path) for each in scored.files]
    complete = {prompt.key for prompt in policies[0].plan.prompts}
    for policy in policies:
        stored = {
            sample.place for sample in read_file(policy.path) if all(sample.answer_key in known for known in rewards)
        }
        complete -= {prompt.key for prompt, *place in policy.plan.places() if (prompt.key, *place) not in stored}
    if len(complete) < 2:
        return []
    return _read([_on_prompts(policy, complete) for policy in policies], scored)


def read_baseline(night: Night, drawn: DrawResult, scored: ScoreResult) -> Baseline | None:
    """Return the base's samples, below which no night may fall; None while the base serves."""
    serving = serving_adapter(night)
    if serving is None:
        return None
    samples = _read(drawn_base(night, drawn), scored)
    return Baseline(serving.manifest.n_base, [each.scored for each in samples])


def _on_prompts(policy: MeasuredPolicy, keys: set[str]) -> MeasuredPolicy:
    prompts = [prompt for prompt in policy.plan.prompts if prompt.key in keys]
    return replace(policy, plan=replace(policy.plan, prompts=prompts))


def _read(policies: Sequence[MeasuredPolicy], scored: ScoreResult) -> list[PolicySamples]:
    rewards = read_scores(scored.select.path)
    judge_rewards = None if scored.judge is None else read_scores(scored.judge.path)
    return [
        PolicySamples(policy, samples, score_set(policy.name, temperature, samples, rewards, judge_rewards))
        for policy in policies
        for temperature, samples in read_sets(policy.plan, policy.path).items()
    ]
