"""Answer one request, from its plan to its record: plan, enter, race, fall back to another arm, record, count.

This module knows no HTTP. An API translates its wire format into an ``AnswerRequest``, and renders the ``Outcome`` or,
of a stream, the ``Delta`` objects before it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import structlog

from gateway.backend.pools import BackendPools
from gateway.best_of_n.arms import Arms
from gateway.best_of_n.cost import race_cost
from gateway.best_of_n.plan import make_plan
from gateway.best_of_n.race import BestOfN
from gateway.contract.bounds import check_bounds
from gateway.errors import GatewayError
from gateway.journal.record import completion_record
from gateway.journal.writer import Journal
from gateway.metering import Meter, Pace
from gateway.policy import Policy, PolicyStore
from gateway.settings import Settings
from gateway.telemetry import Metrics
from gateway.types import AnswerRequest, Arm, ArmName, Delta, Outcome, Plan, Prompt

_CALLER_GONE = "ClientGone"  # the name that the api's error of the same kind has in the metrics

_log = structlog.get_logger()


@dataclass(slots=True)
class Job:
    """One accepted request on its way to an answer. ``started_s``: when it came in, by ``time.perf_counter``."""

    id: str
    request: AnswerRequest
    key_id: str | None
    started_s: float
    policy: Policy
    plan: Plan
    prompt: Prompt
    earlier_prompts: list[Prompt] = field(default_factory=list)
    """Prompts of earlier races of this request, whose arms failed."""

    def cost_tokens(self) -> int:
        """Return the tokens that all races of this request have cost so far: each prompt and all that was drawn."""
        return sum(map(race_cost, (*self.earlier_prompts, self.prompt)))

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started_s) * 1e3


class Answerer:
    """Answers requests with the best of N candidates.

    Args:
        race: Draws, scores and selects.
        backends: The servers of each arm.
        policies: The policy in force: its arms, N, default temperature.
        journal: Takes every completion's record.
        metrics: Counts completions.
        settings: Bounds of schemas; how long a failed arm is set aside; N of the base model.
    """

    def __init__(
        self,
        race: BestOfN,
        backends: BackendPools,
        policies: PolicyStore,
        journal: Journal,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._race = race
        self._backends = backends
        self._policies = policies
        self._journal = journal
        self._metrics = metrics
        self._schema_bounds = settings.schemas
        self._arms = Arms(aside_s=settings.backend.unhealthy_s, base_n=settings.policy.n)
        self._pace = Pace()

    def accept(
        self, request: AnswerRequest, *, id: str, key_id: str | None = None, started_s: float | None = None
    ) -> Job:
        """Check that the backend can serve the request, and plan its race. Draws nothing yet.

        Args:
            request: What the caller asks for.
            id: The completion's id, for its record and its log lines.
            key_id: Hash of the caller's API key.
            started_s: When the request came in, by ``time.perf_counter``; now, if not given.

        Raises:
            InvalidRequest: A schema is over a bound.
            UnsupportedField: The backend cannot serve a field.
        """
        check_bounds(request.sampling, self._schema_bounds)
        self._backends.check(request.sampling)
        policy = self._policies.current
        caller = f"{key_id or ''} {request.user or ''}"
        arm, failed = self._arms.choose(policy, messages=request.messages, caller=caller)
        plan, prompt = self._plan(request, policy, arm, failed)
        started_s = time.perf_counter() if started_s is None else started_s
        return Job(id, request, key_id, started_s, policy, plan, prompt)

    async def answer(self, job: Job) -> Outcome:
        """Run the race and return its outcome, once its record is durable. Another arm takes over from one that fails.

        Raises:
            GatewayError: No arm could answer.
        """
        while True:
            try:
                async with self._race.entered(job.plan, key=job.key_id) as entry:
                    with self._backends.lease(job.plan.arm.urls) as backend:
                        outcome = await self._race.run(entry, job.prompt, backend)
                break
            except GatewayError as error:
                if not self._fall_back(job, error):
                    raise
        await self._record(outcome, job)
        return outcome

    async def stream(self, job: Job) -> AsyncGenerator[Delta | Outcome]:
        """Yield a single candidate's deltas as they are drawn, then the outcome; of a larger race the outcome alone.

        The outcome comes once its record is durable. Before the first delta another arm may take over. A stream that
        ends after it is recorded however it ends.

        Raises:
            GatewayError: No arm could answer, or the stream broke.
        """
        while True:
            begun = False
            try:
                async with self._race.entered(job.plan, key=job.key_id) as entry:
                    with self._backends.lease(job.plan.arm.urls) as backend:
                        if entry.n_run > 1:
                            outcome = await self._race.run(entry, job.prompt, backend)
                        else:
                            live = self._race.stream(entry, job.prompt, backend)
                            outcome = live.outcome
                            async with aclosing(live.deltas):
                                async for delta in live.deltas:
                                    begun = True
                                    yield delta
                break
            except BaseException as error:
                if begun:
                    await self._record_unfinished(outcome, job, error)
                    raise
                if not isinstance(error, GatewayError) or not self._fall_back(job, error):
                    raise
        await self._record(outcome, job)
        yield outcome

    def _plan(self, request: AnswerRequest, policy: Policy, arm: Arm, failed: ArmName | None) -> tuple[Plan, Prompt]:
        plan = make_plan(request, policy, arm, arm_failed=failed)
        return plan, Prompt(request.messages, plan.sampling, arm.adapter, Meter(self._pace))

    def _fall_back(self, job: Job, error: GatewayError) -> bool:
        """Plan the race of another arm after this error; return False if no other arm would help."""
        failed = job.plan.arm
        arm = self._arms.replacement(job.policy, failed, error)
        if arm is None:
            return False
        _log.warning("arm_failed", arm=failed.name, error=type(error).__name__, policy=job.policy.version)
        job.earlier_prompts.append(job.prompt)
        job.plan, job.prompt = self._plan(job.request, job.policy, arm, job.plan.arm_failed or failed.name)
        return True

    async def _record(self, outcome: Outcome, job: Job) -> None:
        """Make the completion's record durable, and count the completion. The answer leaves only after this."""
        recorded_ms = job.elapsed_ms()
        outcome.timings = replace(outcome.timings, total_ms=recorded_ms)
        await self._append(outcome, job)
        total_ms = job.elapsed_ms()
        timings = outcome.timings = replace(outcome.timings, journal_ms=total_ms - recorded_ms, total_ms=total_ms)
        self._metrics.completed(outcome)
        _log.info(
            "completion",
            completion=job.id,
            n=outcome.n_run,
            n_asked=outcome.plan.n_asked,
            arm=outcome.plan.arm.name,
            selection=outcome.selection.value,
            scoring_error=outcome.scoring_error,
            total_ms=round(timings.total_ms, 1),
            overhead_ms=round(timings.overhead_ms, 1),
        )

    async def _record_unfinished(self, outcome: Outcome, job: Job, error: BaseException) -> None:
        """Record a stream that ended before its answer did: without a winner, so that it can never train."""
        [candidate] = outcome.candidates
        candidate.answer, candidate.cut_at_tokens = None, job.prompt.meter.tokens
        outcome.winners, outcome.ending = [], "failed" if isinstance(error, GatewayError) else "cut"
        outcome.timings = replace(outcome.timings, total_ms=job.elapsed_ms())
        candidate.error = error if isinstance(error, GatewayError) else None
        try:
            await self._append(outcome, job)
        finally:
            candidate.error = None  # its traceback holds this frame
        if outcome.ending == "cut":
            self._metrics.errors.labels(_CALLER_GONE).inc()
        _log.info("stream_unfinished", completion=job.id, ending=outcome.ending, tokens=candidate.cut_at_tokens)

    async def _append(self, outcome: Outcome, job: Job) -> None:
        record = completion_record(job.request, outcome, id=job.id, key_id=job.key_id)
        if not await self._journal.append(record):
            # The caller is answered although the disk refused the record. Operators read of the loss here: the
            # journal's own log lines are about its disk and carry no request's id.
            self._metrics.journal_not_durable.inc()
            _log.error("record_not_durable", completion=job.id)
