"""Run one request's race: draw N candidates, score them, select the winners.

Each candidate is drawn by one plain, cancellable call. When the race is decided, its deadline has passed or the caller
has gone, the call is cancelled; its connection closes and generation stops. Streaming N candidates through Python would
cost ten times the CPU, so only a race of one is streamed (``BestOfN.stream``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway import spans
from gateway.best_of_n import span_attributes
from gateway.best_of_n.permits import Grant, Permits
from gateway.best_of_n.plan import draw_seed
from gateway.best_of_n.selection import most_informative_error, select
from gateway.best_of_n.transcript import Transcript
from gateway.contract.check import Contract
from gateway.errors import (
    BackendError,
    CallerError,
    DeadlineExceeded,
    RewardError,
    RewardTimeout,
    RewardUnavailable,
    strip_traceback,
)
from gateway.settings import RaceSettings
from gateway.types import (
    Answer,
    Backend,
    Candidate,
    Delta,
    Message,
    Outcome,
    Plan,
    Prompt,
    Score,
    Scorer,
    Selection,
    Timings,
    Unusable,
)


@dataclass(slots=True)
class Entry:
    """A request that may race: its plan as load allows it, its permits, and the time it waited for them.

    ``unused`` counts permits not yet given to a candidate. ``without_rewards``: the scorer was unavailable, so the race
    draws only as many candidates as answers are returned.
    """

    plan: Plan
    n_run: int
    queue_ms: float
    grant: Grant
    unused: int
    without_rewards: bool = False

    def span_attributes(self) -> spans.Attributes:
        return span_attributes.of_race(self.plan, n_run=self.n_run, queue_ms=self.queue_ms)


@dataclass(slots=True)
class Live:
    """A race of one, streamed as it is drawn; ``outcome`` is complete once ``deltas`` has ended."""

    deltas: AsyncGenerator[Delta]
    outcome: Outcome


class BestOfN:
    """Runs races over one scorer, each on the backend of its policy.

    Args:
        scorer: Gives candidates their rewards.
        permits: Bounds the candidates in flight over all races.
        settings: Deadline and quorum.
        reward_timeout_s: Longest wait for rewards after the last candidate was drawn, in seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        scorer: Scorer,
        permits: Permits,
        settings: RaceSettings,
        *,
        reward_timeout_s: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._scorer = scorer
        self._permits = permits
        self._settings = settings
        self._reward_timeout_s = reward_timeout_s
        self._clock = clock

    @contextlib.asynccontextmanager
    async def entered(self, plan: Plan, *, key: str | None = None) -> AsyncIterator[Entry]:
        """Wait for permits, hold them for one race, and give unused ones back at the end.

        Under load N shrinks, down to the number of answers wanted; below that the request is refused. Keys take
        turns. A request that explores and cannot have all its permits at once becomes an ordinary one, because a
        measurement at a reduced N is worthless. While the scorer is unavailable, a race draws only as many candidates
        as answers are wanted: more could not be compared.

        Raises:
            Overloaded: Not even the answers wanted could be drawn in time.
        """
        entry = await self._admit(plan, key)
        try:
            yield entry
        finally:
            unused, entry.unused = entry.unused, 0
            entry.grant.release(unused)

    async def _admit(self, plan: Plan, key: str | None) -> Entry:
        started = self._clock()
        if not self._scorer.available and (plan.n_asked > 1 or plan.score_single):
            plan = replace(plan, exploration=False, n_asked=plan.n_ordinary, score_single=False)
            grant = await self._permits.acquire(plan.n_returned, floor=plan.n_returned, key=key)
            queue_ms = (self._clock() - started) * 1e3
            return Entry(plan, grant.count, queue_ms, grant, grant.count, without_rewards=True)
        if plan.exploration:
            if (whole := self._permits.try_acquire(plan.n_asked)) is not None:
                return Entry(plan, plan.n_asked, 0.0, whole, plan.n_asked)
            plan = replace(plan, exploration=False, n_asked=plan.n_ordinary)
        grant = await self._permits.acquire(plan.n_asked, floor=plan.n_returned, key=key)
        return Entry(plan, grant.count, (self._clock() - started) * 1e3, grant, grant.count)

    async def run(self, entry: Entry, prompt: Prompt, backend: Backend) -> Outcome:
        """Draw candidates from the backend, score them, and select the winners.

        The deadline bounds the drawing; candidates without a score then still have the reward timeout.

        Raises:
            BackendError: Every candidate failed; the most informative of their errors.
            CallerError: The backend cannot serve this request.
            DeadlineExceeded: No candidate finished in time.
        """
        with spans.span("race", entry.span_attributes):
            outcome = await self._run(entry, prompt, backend)
            spans.record(lambda: span_attributes.of_outcome(outcome))
            return outcome

    async def _run(self, entry: Entry, prompt: Prompt, backend: Backend) -> Outcome:
        started = self._clock()
        candidates = [Candidate(index, draw_seed(entry.plan.seed, index)) for index in range(entry.n_run)]
        scores: dict[str, asyncio.Task[Score | RewardError]] = {}
        async with asyncio.TaskGroup() as group:
            tasks = self._start(group, entry, prompt, backend, candidates, scores)
            cut = await self._until_enough(tasks, candidates, entry.plan)
            drawn = self._clock()
            if scores:
                await asyncio.wait(scores.values(), timeout=self._reward_timeout_s)
            _cancel(scores.values())
        scoring_error = RewardUnavailable.__name__ if entry.without_rewards else _assign_rewards(candidates, scores)
        if not any(candidate.answer for candidate in candidates):
            raise most_informative_error(candidates)
        winners, selection = select(candidates, entry.plan.n_returned)
        ended = self._clock()
        timings = Timings(
            queue_ms=entry.queue_ms,
            generate_ms=max((c.latency_ms for c in candidates if c.latency_ms is not None), default=0.0),
            score_ms=(ended - drawn) * 1e3,
            total_ms=entry.queue_ms + (ended - started) * 1e3,
        )
        return Outcome(
            entry.plan, entry.n_run, candidates, winners, selection, timings, cut, scoring_error, self._scorer.name
        )

    def stream(self, entry: Entry, prompt: Prompt, backend: Backend) -> Live:
        """Stream a race of one straight from the backend."""
        candidate = Candidate(0, draw_seed(entry.plan.seed, 0))
        timings = Timings(queue_ms=entry.queue_ms)
        outcome = Outcome(
            entry.plan, 1, [candidate], [candidate], Selection.SINGLE, timings, reward_model=self._scorer.name
        )
        outcome.scoring_error = RewardUnavailable.__name__ if entry.without_rewards else None
        deltas = self._stream(entry, prompt, backend, outcome)
        return Live(spans.over_stream("race", deltas, entry.span_attributes), outcome)

    def _start(
        self,
        group: asyncio.TaskGroup,
        entry: Entry,
        prompt: Prompt,
        backend: Backend,
        candidates: Sequence[Candidate],
        scores: dict[str, asyncio.Task[Score | RewardError]],
    ) -> list[asyncio.Task[None]]:
        """Start a task for each candidate. Each adds a scoring task to ``scores``, unless its text is there already."""
        replica = backend.choose_replica()
        scored = (len(candidates) > 1 and not entry.without_rewards) or entry.plan.score_single
        contract = Contract(prompt.sampling)

        async def draw(candidate: Candidate) -> None:
            started = self._clock()
            try:
                with spans.span("candidate", lambda: span_attributes.of_candidate(candidate), to_server=True):
                    answer = candidate.answer = await backend.complete(prompt, seed=candidate.seed, replica=replica)
                    spans.record(lambda: span_attributes.of_answer(answer))
            except (BackendError, CallerError) as error:
                # The traceback holds this frame and perhaps an unreadable answer of many megabytes.
                candidate.error = strip_traceback(error)
                return
            finally:
                candidate.latency_ms = (self._clock() - started) * 1e3
            candidate.unusable = contract.broken_by(answer)
            if scored and candidate.unusable is not Unusable.EMPTY and answer.scored_text not in scores:
                score = self._score(prompt.messages, answer.scored_text)
                scores[answer.scored_text] = group.create_task(score)

        tasks = []
        for candidate in candidates:
            task = group.create_task(draw(candidate))
            # Not inside the task: a task cancelled before its first step would never release its permit.
            task.add_done_callback(lambda _: entry.grant.release())
            entry.unused -= 1
            tasks.append(task)
        return tasks

    async def _until_enough(
        self, tasks: Sequence[asyncio.Task[None]], candidates: Sequence[Candidate], plan: Plan
    ) -> bool:
        """Wait for all candidates, a late quorum or the deadline; cancel the rest and return whether any was left."""
        now = asyncio.get_running_loop().time
        deadline = now() + self._settings.deadline_s
        quorum = len(tasks) if plan.exploration else math.ceil(self._settings.quorum * len(tasks))
        pending: Iterable[asyncio.Task[None]] = tasks
        if quorum < len(tasks):
            timeout_s = min(self._settings.quorum_after_s, self._settings.deadline_s)
            _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        while pending and now() < deadline and (quorum == len(tasks) or _n_finished(candidates) < quorum):
            _, pending = await asyncio.wait(
                pending,
                timeout=deadline - now(),
                return_when=asyncio.ALL_COMPLETED if quorum == len(tasks) else asyncio.FIRST_COMPLETED,
            )
        _cancel(pending)
        for candidate, task in zip(candidates, tasks, strict=True):
            if task in pending:
                candidate.error = DeadlineExceeded("this candidate was not finished in time")
        return bool(pending)

    async def _score(self, messages: Sequence[Message], text: str) -> Score | RewardError:
        try:
            with spans.span("score", lambda: {"ratchet.reward_model": self._scorer.name, spans.CUT: False}):
                score = await self._scorer.score(messages, text)
                spans.record(lambda: span_attributes.of_score(score))
        except RewardError as error:
            return strip_traceback(error)
        return score if math.isfinite(score.reward) else RewardError("the reward is not a finite number")

    async def _stream(self, entry: Entry, prompt: Prompt, backend: Backend, outcome: Outcome) -> AsyncGenerator[Delta]:
        started = self._clock()
        deadline = asyncio.get_running_loop().time() + self._settings.deadline_s
        [candidate] = outcome.candidates
        transcript = Transcript()
        entry.unused -= 1
        try:
            stream = spans.over_stream(
                "candidate",
                backend.stream(prompt, seed=candidate.seed, replica=backend.choose_replica()),
                lambda: span_attributes.of_candidate(candidate),
                of_item=span_attributes.of_answer,
                to_server=True,
            )
            async with contextlib.aclosing(stream):
                while (delta := await _next_before(deadline, stream)) is not None:
                    transcript.add(delta)
                    yield delta
            candidate.answer = transcript.answer()
            candidate.unusable = Contract(prompt.sampling).broken_by(candidate.answer)
        finally:
            entry.grant.release()
            candidate.latency_ms = (self._clock() - started) * 1e3
            outcome.timings = replace(
                outcome.timings,
                generate_ms=candidate.latency_ms,
                total_ms=outcome.timings.queue_ms + candidate.latency_ms,
            )
        if entry.plan.score_single and candidate.unusable is not Unusable.EMPTY:
            await self._score_streamed(prompt, candidate, candidate.answer, outcome)
        spans.record(lambda: span_attributes.of_outcome(outcome))

    async def _score_streamed(self, prompt: Prompt, candidate: Candidate, answer: Answer, outcome: Outcome) -> None:
        """Score a streamed candidate for the record; the caller has its text already."""
        started = self._clock()
        async with asyncio.TaskGroup() as group:
            score = group.create_task(self._score(prompt.messages, answer.scored_text))
            await asyncio.wait([score], timeout=self._reward_timeout_s)
            score.cancel()
        outcome.scoring_error = _assign_rewards([candidate], {answer.scored_text: score})
        score_ms = (self._clock() - started) * 1e3
        outcome.timings = replace(outcome.timings, score_ms=score_ms, total_ms=outcome.timings.total_ms + score_ms)


def _assign_rewards(
    candidates: Sequence[Candidate], scores: Mapping[str, asyncio.Task[Score | RewardError]]
) -> str | None:
    """Give each candidate the reward of its text; return the name of the first scoring error, if any."""
    error: str | None = None
    for candidate in candidates:
        task = scores.get(candidate.answer.scored_text) if candidate.answer is not None else None
        if task is None:
            continue
        result = RewardTimeout("the reward model was too slow") if task.cancelled() else task.result()
        if isinstance(result, Score):
            candidate.reward, candidate.prompt_truncated = result.reward, result.prompt_truncated
        else:
            error = error or type(result).__name__
    return error


def _n_finished(candidates: Sequence[Candidate]) -> int:
    return sum(candidate.answer is not None for candidate in candidates)


def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


async def _next_before(deadline: float, stream: AsyncGenerator[Delta]) -> Delta | None:
    # Checked here too: a timeout strikes only where the task waits, and a flood of deltas never lets it wait.
    if asyncio.get_running_loop().time() < deadline:
        # Raise outside "except": otherwise timeout -> task -> exception -> traceback -> timeout is a reference cycle.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                return await anext(stream, None)
    raise DeadlineExceeded("the answer was not finished before the deadline")
