"""The guard's test: is the new policy, at its lower N, still as good as the old one on live traffic? Pure: no I/O.

**Comparison.** During a trial both policies answer at the same time, and a hash assigns conversations to them, so their
rewards are two random samples of the same traffic. Every candidate is scored then, single ones too
(``Plan.score_single``), so N = 1 has rewards like any other. An exploring race counts by the expected best of its
policy's N among all its candidates (``gateway.expected_max``), every other race by its winner.

**Exclusions**, for either policy, of races that would compare something else: those whose N the caller chose, greedy
ones and those that return several answers (their N is not the policy's); races that load had shrunk or a deadline cut
(large N suffers more from both); races without rewards; a conversation that was counted already, since its later turns
are not independent evidence; and conversations that callers did not let us store, which cannot be distinguished. A
request that the new policy could not answer counts as worse than every reward.

**Test.** The k-th answer of the new policy is paired with the k-th of the old one, in order of arrival. Both rewards
become ranks among the old policy's rewards of the earlier pairs (mid-ranks in [0, 1]), so that no scale and no outlier
matters, and D = rank of the new − rank of the old lies in [−1, 1]. With the margin m two e-processes
(``evaluation.eprocess``) run: one against "E[D] ≤ −m", the evidence to promote, and one against "E[D] ≥ −m", the
evidence to roll back. At E[D] = −m the chance that a new answer beats an old one is 1/2 − m instead of 1/2. Both may be
read after every pair; either errs with a chance of at most α in a trial's phase, however long it runs.

Rewards of two reward models cannot be compared. If the reward model changes during a phase, no further evidence is
possible, and the trial ends with a rollback.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from distill.dataset.split import conversation_key
from distill.evaluation import eprocess
from distill.evaluation.curve import Floats
from distill.settings import PromotionSettings
from gateway.expected_max import expected_max
from gateway.journal.record import CompletionRecord
from gateway.policy import Policy
from gateway.types import Arm, Selection

Role = Literal["new", "old"]
Decision = Literal["wait", "promote", "roll back", "end the watch"]

FAILED = -math.inf
"""The reward of a request that the new policy could not answer."""
_STRATEGY: eprocess.Strategy = "mixture"  # needs no planned end
_STRANGERS = 20  # records in a row by another reward model: gateways restarted one by one mix the two for a while
_MOST_WAITING = 8  # unpaired answers kept: the larger arm has many more, and pairs should be close in time


@dataclass(frozen=True, slots=True)
class Phase:
    """A comparison of a trial's new and old policy, from one policy version on."""

    trial: str
    version: int
    new: Arm
    old: Arm

    @property
    def promoted(self) -> bool:
        return self.new.name == "stable"


@dataclass(frozen=True, slots=True)
class Reading:
    """A record's policy, reward and conversation."""

    role: Role
    value: float
    conversation: str


@dataclass(slots=True)
class Evidence:
    """Evidence of a phase so far. Pairs are ``new[i]`` with ``old[i]``; None is ``FAILED``, for JSON has no −∞."""

    new: list[float | None] = field(default_factory=list)
    old: list[float | None] = field(default_factory=list)
    waiting: dict[Role, list[float | None]] = field(default_factory=lambda: {"new": [], "old": []})
    seen: set[str] = field(default_factory=set)
    reward_model: str | None = None
    excluded: Counter[str] = field(default_factory=Counter)
    strangers: int = 0
    """Records in a row that another reward model scored."""
    reward_change: str = ""
    """The change of the reward model, in words; empty if it did not change."""

    def add(self, record: CompletionRecord, phase: Phase) -> None:
        """Add a record, or count the reason for its exclusion. The same record twice counts once."""
        reading = read_record(record, phase)
        if isinstance(reading, str):
            self.excluded[reading] += 1
            return
        if self.reward_model is None:
            self.reward_model = record.reward_model
        waiting = self.waiting[reading.role]
        same_model = record.reward_model == self.reward_model
        self.strangers = 0 if same_model else self.strangers + 1
        if self.strangers >= _STRANGERS:
            self.reward_change = f"the reward model was {self.reward_model} and is {record.reward_model} now"
        if not same_model:
            self.excluded["another reward model"] += 1
        elif reading.conversation in self.seen:
            self.excluded["conversation counted already"] += 1
        elif len(waiting) >= _MOST_WAITING:
            self.excluded["no partner"] += 1
        else:
            self.seen.add(reading.conversation)
            waiting.append(None if reading.value == FAILED else reading.value)
            self._pair()

    def _pair(self) -> None:
        if self.waiting["new"] and self.waiting["old"]:
            self.new.append(self.waiting["new"].pop(0))
            self.old.append(self.waiting["old"].pop(0))

    def differences(self) -> Floats:
        """Return D of each pair, in [−1, 1]: shape (pairs,)."""
        before: list[float] = []
        differences = []
        for new, old in zip(self.new, self.old, strict=True):
            differences.append(_rank(before, new) - _rank(before, old))
            bisect.insort(before, _number(old))
        return np.array(differences, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seen": sorted(self.seen), "excluded": dict(self.excluded)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Evidence:
        """Parse what ``to_json`` returned.

        Raises:
            TypeError, ValueError: It has another shape.
        """
        fields = {**document, "seen": set(document["seen"]), "excluded": Counter(document["excluded"])}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """The guard's decision and its evidence, in units of the threshold 1/α: 1 decides."""

    decision: Decision
    pairs: int
    mean_difference: float
    better: float
    worse: float
    reward_change: str = ""

    def describe(self) -> str:
        if self.reward_change:
            return f"{self.reward_change}, so later rewards cannot be compared with the first {self.pairs} pairs"
        return (
            f"{self.pairs} pairs of live answers, mean difference {self.mean_difference:+.3f} in ranks; evidence that "
            f"the new policy is good enough {self.better:.2g} of 1, that it is not {self.worse:.2g} of 1"
        )


def phase_of(known: Sequence[Policy]) -> Phase | None:
    """Return the comparison under the policy in force; None outside a trial.

    Args:
        known: Policies, newest first, the one in force at the front.
    """
    current, second = known[0], known[0].second
    if current.canary is None or second is None:
        return None
    version = current.version
    for policy in known[1:]:
        if policy.stable != current.stable or policy.second != second or policy.canary is None:
            break
        if policy.canary.trial != current.canary.trial:
            break
        version = policy.version
    new, old = (current.stable, second) if current.canary.holdback else (second, current.stable)
    return Phase(current.canary.trial, version, new, old)


def read_record(record: CompletionRecord, phase: Phase) -> Reading | str:
    """Return a record's reading in this comparison, or the reason for its exclusion."""
    failed = record.arm_failed is not None
    role = _role(record, phase)
    if record.policy_version < phase.version or role is None:
        return "another policy"
    if record.messages is None:
        return "not stored"
    if record.n_from_caller or record.n_returned > 1 or record.sampling.temperature == 0:
        return "N not the policy's"
    conversation = _conversation(record.key_id, record.user, conversation_key(record.messages))
    if failed:
        return Reading("new", FAILED, conversation) if role == "new" else "the old policy could not answer"
    arm = phase.new if role == "new" else phase.old
    rewards = [candidate.reward for candidate in record.candidates if candidate.reward is not None]
    if record.adapter != arm.adapter or record.n_ordinary != arm.n:
        return "another policy"
    if record.n_run < record.n_asked:
        return "shrunk by load"
    if record.deadline_hit:
        return "cut"
    if record.selection is Selection.FALLBACK or record.scoring_error is not None or not rewards:
        return "no rewards"
    if not record.exploration:
        return Reading(role, max(rewards), conversation)
    return Reading(role, expected_max(rewards, arm.n), conversation) if len(rewards) >= arm.n else "no rewards"


def decide(evidence: Evidence, phase: Phase, settings: PromotionSettings) -> GuardVerdict:
    pairs = len(evidence.new)
    if evidence.reward_change:
        return GuardVerdict("roll back", pairs, 0.0, 0.0, 0.0, evidence.reward_change)
    if pairs == 0:
        return GuardVerdict("wait", 0, 0.0, 0.0, 0.0)
    differences, margin, alpha = evidence.differences(), settings.guard_margin, settings.guard_alpha
    # Division by the range keeps observations within [-1, 1], as e-processes need, and changes no hypothesis.
    above = (differences + margin) / (1 + margin)
    better = eprocess.run(above, alpha=alpha, strategy=_STRATEGY)
    worse = eprocess.run(-above, alpha=alpha, strategy=_STRATEGY)
    decision: Decision = "wait"
    if worse.crossed_at is not None:
        decision = "roll back"
    elif phase.promoted:
        decision = "end the watch" if pairs >= settings.watch_requests else "wait"
    elif better.crossed_at is not None and pairs >= settings.canary_requests:
        decision = "promote"
    return GuardVerdict(decision, pairs, float(differences.mean()), alpha * better.highest, alpha * worse.highest)


def _role(record: CompletionRecord, phase: Phase) -> Role | None:
    """Return the policy that answered, or should have answered; None for a third one."""
    arm = record.arm_failed or record.arm
    if arm == phase.new.name:
        return "new"
    return "old" if arm == phase.old.name else None


def _conversation(*names: str | None) -> str:
    """Hash a caller's conversation to 16 hexadecimal digits, which reveal neither."""
    text = "\0".join(name or "" for name in names)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _number(value: float | None) -> float:
    return FAILED if value is None else value


def _rank(before: Sequence[float], value: float | None) -> float:
    """Return the mid-rank of a value among those before it, in [0, 1]."""
    number = _number(value)
    if not before or number == FAILED:
        return 0.5 if number != FAILED else 0.0
    return (bisect.bisect_left(before, number) + bisect.bisect_right(before, number)) / (2 * len(before))
