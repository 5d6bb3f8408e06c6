"""``POST /v1/chat/completions``: one request's way, from its bytes to its answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace

import structlog
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from gateway.api import errors, render, sse
from gateway.api.auth import ApiKeys
from gateway.api.connection import ClientGone, EventStream, read_body, unless_gone
from gateway.api.json_response import json_response
from gateway.api.keyfile import Scope
from gateway.api.limits import Limiter, Visit
from gateway.api.openapi import ERRORS, request_body
from gateway.api.schemas import ChatCompletion, ChatCompletionRequest
from gateway.api.translate import Ask, translate
from gateway.backend.pools import BackendPools
from gateway.best_of_n.arms import Arms
from gateway.best_of_n.cost import race_cost
from gateway.best_of_n.plan import make_plan
from gateway.best_of_n.race import BestOfN, Entry, Live
from gateway.contract.bounds import check_bounds
from gateway.errors import GatewayError
from gateway.journal.record import completion_record
from gateway.journal.writer import Journal
from gateway.metering import Meter, Pace
from gateway.policy import Arm, Policy, PolicyStore
from gateway.settings import Settings
from gateway.telemetry import Metrics
from gateway.types import ArmName, Outcome, Plan, Prompt, Timings

_log = structlog.get_logger()


@dataclass(slots=True)
class _Job:
    """One request on its way."""

    ask: Ask
    policy: Policy
    plan: Plan
    prompt: Prompt
    key_id: str | None
    visit: Visit
    started: float
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    headers: dict[str, str] = field(default_factory=dict)
    """Facts of the race for the response's headers, once it has ended."""
    raced: list[Prompt] = field(default_factory=list)
    """What earlier races were asked, which the stable policy took over from."""

    def count(self) -> None:
        """Tell the visit what all races have cost by now."""
        self.visit.tokens = sum(map(race_cost, (*self.raced, self.prompt)))

    def elapsed_ms(self) -> float:
        return (time.perf_counter() - self.started) * 1e3


class ChatCompletions:
    """Answers chat requests with the best of N.

    Args:
        race: Draws, scores and selects.
        backends: Where each policy's draws come from; asked beforehand whether they can serve a request's sampling.
        policies: What holds now: adapter, N, default temperature.
        journal: Takes every completion's record.
        keys: Who may call.
        limiter: How much.
        metrics: Counts.
        settings: Limits.
    """

    def __init__(
        self,
        race: BestOfN,
        backends: BackendPools,
        policies: PolicyStore,
        journal: Journal,
        keys: ApiKeys,
        limiter: Limiter,
        metrics: Metrics,
        settings: Settings,
    ) -> None:
        self._race = race
        self._backends = backends
        self._policies = policies
        self._journal = journal
        self._keys = keys
        self._limiter = limiter
        self._metrics = metrics
        self._settings = settings
        self._arms = Arms(aside_s=settings.backend.unhealthy_s, base_n=settings.policy.n)
        self._pace = Pace()

    async def respond(self, request: Request) -> Response:
        """Answer one request."""
        started = time.perf_counter()
        key = self._keys.authenticate(request.headers.get("authorization"), Scope.CHAT)
        if key is not None:
            structlog.contextvars.bind_contextvars(key=key.name)
        visit = await self._limiter.enter(key, race=True)
        with ExitStack() as visiting:
            visiting.callback(visit.leave)
            request.state.visit = visit  # what is left of the key's limits is told with errors too
            job = await self._accept(request, key.id if key else None, visit, started)
            visiting.callback(job.count)  # before the visit is left, however the races ended
            if not job.ask.stream:
                return await unless_gone(request.receive, self._whole(job))
            stream = EventStream(
                self._events(job),
                keep_alive_s=self._settings.api.keep_alive_s,
                keep_alive=sse.KEEP_ALIVE,
                on_error=self._error_event,
                on_end=visiting.pop_all().close,
            )
            await stream.start(request.receive)
            stream.headers.update(job.headers | visit.headers())
            return stream

    async def _accept(self, request: Request, key_id: str | None, visit: Visit, started: float) -> _Job:
        """Validate and plan; refuses before any work is done."""
        api = self._settings.api
        body = await read_body(request, limit_bytes=api.max_body_bytes, timeout_s=api.body_timeout_s)
        try:
            parsed = ChatCompletionRequest.model_validate_json(body)
        except ValidationError as error:
            raise errors.invalid_body(error) from None
        ask = translate(
            parsed,
            best_of_header=request.headers.get("x-best-of"),
            api=api,
            best_of_max=self._settings.race.best_of_max,
        )
        check_bounds(ask.sampling, self._settings.schemas)
        self._backends.check(ask.sampling)
        policy = self._policies.current
        caller = f"{key_id or ''} {ask.user or ''}"
        arm, failed = self._arms.choose(policy, messages=ask.messages, caller=caller)
        plan, prompt = self._plan(ask, policy, arm, failed)
        return _Job(ask, policy, plan, prompt, key_id, visit, started)

    async def _whole(self, job: _Job) -> Response:
        while True:
            try:
                outcome = await self._run(await self._race.admit(job.plan, key=job.key_id), job)
                break
            except GatewayError as error:
                if not self._fall_back(job, error):
                    raise
        timings = await self._record(outcome, job)
        body = render.completion(outcome, timings, completion_id=job.id, created=job.created, model=job.ask.model)
        return json_response(body, headers=render.headers(outcome, timings) | job.visit.headers())

    async def _events(self, job: _Job) -> AsyncGenerator[bytes]:
        """The events of a streamed request; before the first one another policy may still take over."""
        while True:
            begun = False
            try:
                async with aclosing(self._events_of(job)) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except GatewayError as error:
                if begun or not self._fall_back(job, error):
                    raise

    async def _events_of(self, job: _Job) -> AsyncGenerator[bytes]:
        """A race's winner in one burst of chunks, or a single draw as it comes."""
        chunks = sse.Chunks(
            completion_id=job.id, created=job.created, model=job.ask.model, include_usage=job.ask.include_usage
        )
        entry = await self._race.admit(job.plan, key=job.key_id)
        if entry.n_run > 1:
            outcome = await self._run(entry, job)
            timings = await self._record(outcome, job)
            job.headers = render.headers(outcome, timings)
            yield b"".join(chunks.winners(outcome))
        else:
            with self._backends.lease(job.plan.urls) as backend:
                try:
                    live = self._race.live(entry, job.prompt, backend)
                    async with aclosing(self._live_events(live, job, chunks)) as events:
                        async for event in events:
                            yield event
                finally:
                    await live.deltas.aclose()
                    self._race.leave(entry)
            outcome = live.outcome
            timings = await self._record(outcome, job)
        yield b"".join(chunks.end(outcome, timings))

    async def _live_events(self, live: Live, job: _Job, chunks: sse.Chunks) -> AsyncGenerator[bytes]:
        """A single draw as it comes. Once its caller has seen some of it, it is recorded however it ends."""
        opened = False
        try:
            async for delta in live.deltas:
                piece = chunks.piece(delta) if delta.text or delta.tool_calls or delta.logprobs else b""
                if opening := b"" if opened else chunks.first():
                    job.headers = {"x-bon-n": "1", "x-bon-selection": live.outcome.selection.value}
                    opened = True
                if opening or piece:
                    yield opening + piece
        except BaseException as error:
            await live.deltas.aclose()  # now all that was drawn is counted
            if opened:
                await self._record_unfinished(live.outcome, job, error)
            raise

    def _fall_back(self, job: _Job, error: GatewayError) -> bool:
        """Let another policy answer where this one could not; False where that is no remedy."""
        arm = self._arms.instead(job.policy, job.plan, error)
        if arm is None:
            return False
        _log.warning("arm_failed", arm=job.plan.arm, error=type(error).__name__, policy=job.policy.version)
        job.raced.append(job.prompt)
        job.plan, job.prompt = self._plan(job.ask, job.policy, arm, job.plan.arm_failed or job.plan.arm)
        return True

    async def _run(self, entry: Entry, job: _Job) -> Outcome:
        try:
            with self._backends.lease(job.plan.urls) as backend:
                return await self._race.race(entry, job.prompt, backend)
        finally:
            self._race.leave(entry)

    async def _record(self, outcome: Outcome, job: _Job) -> Timings:
        """Make the completion's record durable, and count it; the answer leaves only after this."""
        outcome.timings = replace(outcome.timings, total_ms=job.elapsed_ms())
        before_ms = job.elapsed_ms()
        await self._append(outcome, job)
        total_ms = job.elapsed_ms()
        job.count()
        timings = replace(outcome.timings, journal_ms=total_ms - before_ms, total_ms=total_ms)
        self._metrics.completed(outcome, timings)
        _log.info(
            "completion",
            completion=job.id,
            n=outcome.n_run,
            n_asked=outcome.plan.n_asked,
            arm=outcome.plan.arm,
            selection=outcome.selection.value,
            scoring_error=outcome.scoring_error,
            total_ms=round(timings.total_ms, 1),
            overhead_ms=round(timings.overhead_ms, 1),
        )
        return timings

    async def _record_unfinished(self, outcome: Outcome, job: _Job, error: BaseException) -> None:
        """Record a stream that ended before its answer did: without a winner, so that it can never train."""
        [candidate] = outcome.candidates
        candidate.answer, candidate.cut_at_tokens = None, job.prompt.meter.tokens
        outcome.winners, outcome.ending = [], "failed" if isinstance(error, GatewayError) else "cut"
        outcome.timings = replace(outcome.timings, total_ms=job.elapsed_ms())
        candidate.error = error if isinstance(error, GatewayError) else None
        try:
            await self._append(outcome, job)
        finally:
            candidate.error = None  # it holds this frame
        if outcome.ending == "cut":
            self._metrics.errors.labels(ClientGone.__name__).inc()
        _log.info("stream_unfinished", completion=job.id, ending=outcome.ending, tokens=candidate.cut_at_tokens)

    async def _append(self, outcome: Outcome, job: _Job) -> None:
        record = completion_record(
            id=job.id,
            outcome=outcome,
            messages=job.ask.messages,
            sampling=job.prompt.sampling,
            model=job.ask.model,
            key_id=job.key_id,
            store=job.ask.store,
            user=job.ask.user,
            metadata=job.ask.metadata,
        )
        if not await self._journal.append(record):
            # The caller's answer is not lost with our disk; the loss is told where operators look. The journal's own
            # lines are about its disk and carry no request's id.
            self._metrics.journal_not_durable.inc()
            _log.error("record_not_durable", completion=job.id)

    def _plan(self, ask: Ask, policy: Policy, arm: Arm, failed: ArmName | None) -> tuple[Plan, Prompt]:
        """The race as the arm would run it, and what it asks of the backend."""
        sampling = ask.sampling
        if sampling.temperature is None:
            sampling = replace(sampling, temperature=arm.default_temperature)
        plan = make_plan(
            policy,
            arm,
            messages=ask.messages,
            sampling=sampling,
            best_of=ask.best_of,
            n_returned=ask.n_returned,
            arm_failed=failed,
        )
        return plan, Prompt(ask.messages, sampling, plan.adapter, Meter(self._pace))

    def _error_event(self, error: GatewayError) -> bytes:
        self._metrics.errors.labels(type(error).__name__).inc()
        _log.info("refused", error=type(error).__name__, streaming=True)
        _, body, _ = errors.describe(error)
        return sse.frame(body) + sse.DONE


def routes(service: ChatCompletions) -> APIRouter:
    """The route, for the app to include."""
    router = APIRouter(tags=["chat"])

    @router.post(
        "/v1/chat/completions",
        summary="Answer with the best of N candidates",
        responses={200: {"model": ChatCompletion, "content": {"text/event-stream": {}}}, **ERRORS},
        openapi_extra=request_body(
            ChatCompletionRequest,
            header={
                "name": "X-Best-Of",
                "schema": {"type": "integer", "minimum": 1},
                "description": "N, over the body",
            },
        ),
    )
    async def chat_completions(request: Request) -> Response:
        return await service.respond(request)

    return router
