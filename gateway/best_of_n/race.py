"""One request's race.

Every draw is one plain, cancellable call: when the race is decided, over its deadline, or its client is gone, the
call is cancelled, its connection closes and generation stops. Streaming N draws through Python would cost ten times
the CPU, so only a race of one draw is streamed (``BestOfN.live``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gateway.best_of_n.permits import Grant, Permits
from gateway.best_of_n.plan import draw_seed
from gateway.best_of_n.selection import most_telling, select
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
    """A request admitted to race: its plan as load allowed it, its permits, its clock."""

    plan: Plan
    n_run: int
    queue_ms: float
    grant: Grant
    unused: int
    """Permits not yet handed to a draw; whoever leaves early gives them back."""
    unjudged: bool = False
    """Rewards could not be expected as it was admitted: it draws only as many answers as are wanted."""


@dataclass(slots=True)
class Live:
    """A race of one draw, streamed as it is drawn; ``outcome`` is complete once ``deltas`` has ended."""

    deltas: AsyncGenerator[Delta]
    outcome: Outcome


class BestOfN:
    """Races requests over one scorer, each on the backend of its policy.

    Args:
        scorer: What gives them rewards.
        permits: Shared bound on draws in flight.
        settings: Deadline and quorum.
        reward_timeout_s: Longest wait for rewards after the last draw, in seconds.
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

    async def admit(self, plan: Plan, *, key: str | None = None) -> Entry:
        """Wait for permits. Under load the race shrinks, to as few draws as answers wanted; then it is refused.

        Turns go round by API key. An exploration request that cannot have all its draws at once becomes an ordinary
        one: a measurement that load has trimmed measures nothing.

        While no rewards can be had, a race draws only as many answers as are wanted: more could not be compared.

        Raises:
            Overloaded: Not even the answers wanted could be drawn in time.
        """
        started = self._clock()
        if not self._scorer.available and (plan.n_asked > 1 or plan.score_single):
            plan = replace(plan, exploration=False, n_asked=plan.n_ordinary, score_single=False)
            grant = await self._permits.acquire(plan.n_returned, floor=plan.n_returned, key=key)
            return Entry(plan, grant.count, (self._clock() - started) * 1e3, grant, grant.count, unjudged=True)
        if plan.exploration:
            if (whole := self._permits.try_acquire(plan.n_asked)) is not None:
                return Entry(plan, plan.n_asked, 0.0, whole, plan.n_asked)
            plan = replace(plan, exploration=False, n_asked=plan.n_ordinary)
        grant = await self._permits.acquire(plan.n_asked, floor=plan.n_returned, key=key)
        return Entry(plan, grant.count, (self._clock() - started) * 1e3, grant, grant.count)

    def leave(self, entry: Entry) -> None:
        """Give back the permits of an entry that never raced; harmless after a race."""
        unused, entry.unused = entry.unused, 0
        entry.grant.release(unused)

    async def race(self, entry: Entry, prompt: Prompt, backend: Backend) -> Outcome:
        """Draw from the backend, score and select.

        The deadline bounds the drawing; what is unscored then still has the reward timeout.

        Raises:
            BackendError: Every candidate failed; the most telling error.
            CallerError: The backend cannot be asked this.
            DeadlineExceeded: No candidate finished in time.
        """
        started = self._clock()
        candidates = [Candidate(index, draw_seed(entry.plan.seed, index)) for index in range(entry.n_run)]
        scores: dict[str, asyncio.Task[Score | RewardError]] = {}
        async with asyncio.TaskGroup() as group:
            draws = self._start_draws(group, entry, prompt, backend, candidates, scores)
            cut = await self._until_enough(draws, candidates, entry.plan)
            drawn = self._clock()
            if scores:
                await asyncio.wait(scores.values(), timeout=self._reward_timeout_s)
            _cancel(scores.values())
        scoring_error = RewardUnavailable.__name__ if entry.unjudged else _assign_rewards(candidates, scores)
        if not any(candidate.answer for candidate in candidates):
            raise most_telling(candidates)
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

    def live(self, entry: Entry, prompt: Prompt, backend: Backend) -> Live:
        """Stream a race of one draw straight from the backend."""
        candidate = Candidate(0, draw_seed(entry.plan.seed, 0))
        timings = Timings(queue_ms=entry.queue_ms)
        outcome = Outcome(
            entry.plan, 1, [candidate], [candidate], Selection.SINGLE, timings, reward_model=self._scorer.name
        )
        outcome.scoring_error = RewardUnavailable.__name__ if entry.unjudged else None
        return Live(self._draw_live(entry, prompt, backend, outcome), outcome)

    def _start_draws(
        self,
        group: asyncio.TaskGroup,
        entry: Entry,
        prompt: Prompt,
        backend: Backend,
        candidates: Sequence[Candidate],
        scores: dict[str, asyncio.Task[Score | RewardError]],
    ) -> list[asyncio.Task[None]]:
        replica = backend.choose_replica()
        scored = (len(candidates) > 1 and not entry.unjudged) or entry.plan.score_single
        contract = Contract(prompt.sampling)

        async def draw(candidate: Candidate) -> None:
            started = self._clock()
            try:
                answer = candidate.answer = await backend.complete(prompt, seed=candidate.seed, replica=replica)
            except (BackendError, CallerError) as error:
                candidate.error = strip_traceback(error)  # its trace holds this frame, and the answer it could not read
                return
            finally:
                candidate.latency_ms = (self._clock() - started) * 1e3
            candidate.unusable = contract.broken_by(answer)
            if scored and candidate.unusable is not Unusable.EMPTY and answer.judged_text not in scores:
                score = self._score(prompt.messages, answer.judged_text)
                scores[answer.judged_text] = group.create_task(score)

        draws = []
        for candidate in candidates:
            task = group.create_task(draw(candidate))
            # Not inside the task: one that is cancelled before its first step would keep its permit for ever.
            task.add_done_callback(lambda _: entry.grant.release())
            entry.unused -= 1
            draws.append(task)
        return draws

    async def _until_enough(
        self, draws: Sequence[asyncio.Task[None]], candidates: Sequence[Candidate], plan: Plan
    ) -> bool:
        """Wait for all draws, a late quorum of answers or the deadline; cancel the rest and say whether any was."""
        now = asyncio.get_running_loop().time
        deadline = now() + self._settings.deadline_s
        quorum = len(draws) if plan.exploration else math.ceil(self._settings.quorum * len(draws))
        late: Iterable[asyncio.Task[None]] = draws
        if quorum < len(draws):
            _, late = await asyncio.wait(draws, timeout=min(self._settings.quorum_after_s, self._settings.deadline_s))
        while late and now() < deadline and (quorum == len(draws) or _n_finished(candidates) < quorum):
            _, late = await asyncio.wait(
                late,
                timeout=max(0.0, deadline - now()),
                return_when=asyncio.ALL_COMPLETED if quorum == len(draws) else asyncio.FIRST_COMPLETED,
            )
        _cancel(late)
        for candidate, task in zip(candidates, draws, strict=True):
            if task in late:
                candidate.error = DeadlineExceeded("this candidate was not finished in time")
        return bool(late)

    async def _score(self, messages: Sequence[Message], text: str) -> Score | RewardError:
        try:
            score = await self._scorer.score(messages, text)
        except RewardError as error:
            return strip_traceback(error)
        return score if math.isfinite(score.reward) else RewardError("the reward is not a finite number")

    async def _draw_live(
        self, entry: Entry, prompt: Prompt, backend: Backend, outcome: Outcome
    ) -> AsyncGenerator[Delta]:
        started = self._clock()
        deadline = asyncio.get_running_loop().time() + self._settings.deadline_s
        [candidate] = outcome.candidates
        said = Transcript()
        entry.unused -= 1
        try:
            stream = backend.stream(prompt, seed=candidate.seed, replica=backend.choose_replica())
            async with contextlib.aclosing(stream):
                while (delta := await _next_before(deadline, stream)) is not None:
                    said.add(delta)
                    yield delta
            candidate.answer = said.answer()
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
            await self._score_live(prompt, candidate, candidate.answer, outcome)

    async def _score_live(self, prompt: Prompt, candidate: Candidate, answer: Answer, outcome: Outcome) -> None:
        """Give a streamed draw its reward, for the record: its client has the text already."""
        started = self._clock()
        async with asyncio.TaskGroup() as group:
            score = group.create_task(self._score(prompt.messages, answer.judged_text))
            await asyncio.wait([score], timeout=self._reward_timeout_s)
            score.cancel()
        outcome.scoring_error = _assign_rewards([candidate], {answer.judged_text: score})
        score_ms = (self._clock() - started) * 1e3
        outcome.timings = replace(outcome.timings, score_ms=score_ms, total_ms=outcome.timings.total_ms + score_ms)


def _assign_rewards(
    candidates: Sequence[Candidate], scores: Mapping[str, asyncio.Task[Score | RewardError]]
) -> str | None:
    """Give each candidate its answer's reward; the first scoring error's name where there was one."""
    error: str | None = None
    for candidate in candidates:
        task = scores.get(candidate.answer.judged_text) if candidate.answer is not None else None
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
    # A timeout strikes where something is waited for: a backend that floods its caller would never meet one.
    if asyncio.get_running_loop().time() < deadline:
        # Not raised out of the handler: a timeout knows its task, which would have the error, which would have it.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                return await anext(stream, None)
    raise DeadlineExceeded("the answer was not finished before the deadline")
