"""Is the new policy, at its lower N, still as good as the old one on live traffic? Pure: records in, a verdict out.

**What is compared.** During a trial both policies answer at the same time, and which conversations are whose was drawn
by a hash, so their rewards are two random samples of one traffic. Every draw is scored then, single ones too
(``Plan.score_single``), so N = 1 has rewards like any other. A race that explores counts by the expected best of its
policy's N among all its draws (``gateway.expected_max``), every other race by its winner.

**What is left out**, for either policy, since it would compare something else: races whose N the caller chose, greedy
ones and those that return several answers (their N is not the policy's); races that load had shrunk or a deadline cut
(large N suffers more from both); races without rewards; a conversation that was counted already, since its later turns
are no independent evidence; and conversations that callers did not let us store, which cannot be told apart. What the
new policy could not answer at all counts as worse than everything.

**How.** The k-th answer of the new policy meets the k-th of the old one, in order of arrival. Both rewards become
places among the old policy's rewards of the pairs before (mid-ranks in [0, 1]), so that no scale and no outlier
matters, and D = place of the new − place of the old lies in [−1, 1]. With the margin m two e-processes
(``evaluation.eprocess``) run: one against "E[D] ≤ −m", which is the evidence to promote, and one against "E[D] ≥ −m",
the evidence to roll back. At E[D] = −m the chance that a new answer beats an old one is 1/2 − m instead of 1/2. Both
may be read after every pair; either errs with a chance of at most α in a trial's phase, however long it runs.

Rewards of two reward models cannot be compared. Once another one scores than at the phase's beginning, no evidence can
come any more, and the trial ends by a rollback.
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
"""Stands for an answer that the new policy could not give."""
_STRATEGY: eprocess.Strategy = "mixture"  # needs no planned end
_STRANGERS = 20  # records in a row by another reward model: gateways restarted one by one mix the two for a while
_MOST_WAITING = 8  # unpaired answers kept: the larger arm has many more, and pairs should be of one time


@dataclass(frozen=True, slots=True)
class Phase:
    """What is compared now: from one policy version on, a new and an old policy of one trial."""

    trial: str
    version: int
    new: Arm
    old: Arm

    @property
    def promoted(self) -> bool:
        """Whether the new policy is the stable one already."""
        return self.new.name == "stable"


@dataclass(frozen=True, slots=True)
class Reading:
    """What one record says: whose answer, how good, in which conversation."""

    role: Role
    value: float
    conversation: str


@dataclass(slots=True)
class Evidence:
    """What a phase has shown so far. Pairs are ``new[i]`` with ``old[i]``; None is ``FAILED``, for JSON has no −∞."""

    new: list[float | None] = field(default_factory=list)
    old: list[float | None] = field(default_factory=list)
    waiting: dict[Role, list[float | None]] = field(default_factory=lambda: {"new": [], "old": []})
    seen: set[str] = field(default_factory=set)
    reward_model: str | None = None
    excluded: Counter[str] = field(default_factory=Counter)
    strangers: int = 0
    """Records in a row that another reward model scored."""
    reward_change: str = ""
    """In words how the reward model changed; empty while it has not."""

    def take(self, record: CompletionRecord, phase: Phase) -> None:
        """Count a record, or why it does not count. The same record twice counts once."""
        reading = read(record, phase)
        if isinstance(reading, str):
            self.excluded[reading] += 1
            return
        if self.reward_model is None:
            self.reward_model = record.reward_model
        waiting = self.waiting[reading.role]
        ours = record.reward_model == self.reward_model
        self.strangers = 0 if ours else self.strangers + 1
        if self.strangers >= _STRANGERS:
            self.reward_change = f"the reward model was {self.reward_model} and is {record.reward_model} now"
        if not ours:
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
        """D of each pair, in [−1, 1]: shape (pairs,)."""
        before: list[float] = []
        differences = []
        for new, old in zip(self.new, self.old, strict=True):
            differences.append(_place(before, new) - _place(before, old))
            bisect.insort(before, _number(old))
        return np.array(differences, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        return {**asdict(self), "seen": sorted(self.seen), "excluded": dict(self.excluded)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Evidence:
        """Read it back.

        Raises:
            TypeError, ValueError: It has another shape.
        """
        fields = {**document, "seen": set(document["seen"]), "excluded": Counter(document["excluded"])}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says, and what follows. Evidence is in units of what is needed (1/α): 1 decides."""

    decision: Decision
    pairs: int
    mean_difference: float
    better: float
    worse: float
    reward_change: str = ""

    def words(self) -> str:
        """For the history and the log."""
        if self.reward_change:
            return f"{self.reward_change}, so what comes cannot be compared any more, after {self.pairs} pairs"
        return (
            f"{self.pairs} pairs of live answers, mean difference {self.mean_difference:+.3f} in ranks; evidence that "
            f"the new policy is good enough {self.better:.2g} of 1, that it is not {self.worse:.2g} of 1"
        )


def phase_of(known: Sequence[Policy]) -> Phase | None:
    """What is compared under the policy in force, and since which version.

    Args:
        known: Newest first, the one in force at the front.
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


def read(record: CompletionRecord, phase: Phase) -> Reading | str:
    """What a record says in this comparison, or why it says nothing."""
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


def judge(evidence: Evidence, phase: Phase, settings: PromotionSettings) -> Verdict:
    """What the evidence says now."""
    pairs = len(evidence.new)
    if evidence.reward_change:
        return Verdict("roll back", pairs, 0.0, 0.0, 0.0, evidence.reward_change)
    if pairs == 0:
        return Verdict("wait", 0, 0.0, 0.0, 0.0)
    differences, margin, alpha = evidence.differences(), settings.guard_margin, settings.guard_alpha
    # Divided by the range, which changes no hypothesis: observations have to lie within [-1, 1].
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
    return Verdict(decision, pairs, float(differences.mean()), alpha * better.highest, alpha * worse.highest)


def _role(record: CompletionRecord, phase: Phase) -> Role | None:
    """Whose answer it is, or should have been."""
    arm = record.arm_failed or record.arm
    if arm == phase.new.name:
        return "new"
    return "old" if arm == phase.old.name else None


def _conversation(*names: str | None) -> str:
    """One caller's conversation, in 16 hexadecimal digits that tell of neither."""
    text = "\0".join(name or "" for name in names)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _number(value: float | None) -> float:
    return FAILED if value is None else value


def _place(before: Sequence[float], value: float | None) -> float:
    """Mid-rank of a value among those before it, in [0, 1]."""
    number = _number(value)
    if not before or number == FAILED:
        return 0.5 if number != FAILED else 0.0
    return (bisect.bisect_left(before, number) + bisect.bisect_right(before, number)) / (2 * len(before))
