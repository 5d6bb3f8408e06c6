"""Answerers on real parts, without HTTP before them: stub servers, a real spool, no Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from gateway.app import Parts, build
from gateway.best_of_n.answering import Answerer, Job
from gateway.errors import GatewayError
from gateway.journal.claim import worker_folders
from gateway.journal.record import CompletionRecord, decode
from gateway.journal.spool import SpoolReader
from gateway.policy import Policy
from gateway.settings import Settings
from gateway.types import AnswerRequest, Delta, Outcome, Sampling
from tests.gateway.best_of_n.fakes import HELLO
from tests.stubs.knobs import Knobs
from tests.stubs.reward import RewardKnobs, RewardStub
from tests.stubs.tgi import TgiStub

NO_REDIS = "redis://127.0.0.1:1/0"


def request(**fields: Any) -> AnswerRequest:
    """A request; the fields of ``Sampling`` go there."""
    sampling = {name: fields.pop(name) for name in list(fields) if name in Sampling.__dataclass_fields__}
    return AnswerRequest("ratchet", fields.pop("messages", HELLO), Sampling(**sampling), **fields)


@dataclass(slots=True)
class Answering:
    """An answerer, the parts it is made of, and the stubs behind it."""

    answerer: Answerer
    parts: Parts
    tgi: TgiStub
    rewards: RewardStub
    spool: Path
    jobs: list[Job] = field(default_factory=list)

    def accept(self, **fields: Any) -> Job:
        """Accept a request under the next id: ``job-0``, then ``job-1``, and so on."""
        self.jobs.append(self.answerer.accept(request(**fields), id=f"job-{len(self.jobs)}", key_id="key"))
        return self.jobs[-1]

    async def answer(self, **fields: Any) -> Outcome:
        return await self.answerer.answer(self.accept(**fields))

    async def stream(self, **fields: Any) -> tuple[list[Delta], Outcome]:
        """Read a stream to its end: its deltas, and the outcome that follows them."""
        async with aclosing(self.answerer.stream(self.accept(**fields))) as stream:
            *deltas, outcome = [piece async for piece in stream]
        assert isinstance(outcome, Outcome)
        return [delta for delta in deltas if isinstance(delta, Delta)], outcome

    async def read(self, pieces: list[Delta | Outcome], **fields: Any) -> None:
        """Append a stream's pieces as they come, also those before an error."""
        async with aclosing(self.answerer.stream(self.accept(**fields))) as stream:
            async for piece in stream:
                pieces.append(piece)

    async def finish(self, *, stream: bool, **fields: Any) -> Outcome | GatewayError:
        """Answer or stream to the end, and return what came of it."""
        try:
            return (await self.stream(**fields))[1] if stream else await self.answer(**fields)
        except GatewayError as error:
            return error

    def records(self) -> list[CompletionRecord]:
        """The records in the spool, oldest first."""
        [folder] = worker_folders(self.spool)
        frames = SpoolReader(folder).read(max_records=1_000, max_bytes=10**9, end=None)
        records = [decode(frame.data) for frame in frames]
        return [record for record in records if isinstance(record, CompletionRecord)]

    def count(self, metric: str, **labels: str) -> float:
        return self.parts.metrics.registry.get_sample_value(metric, labels) or 0.0

    @property
    def drawn_tokens(self) -> int:
        """Tokens that the stub drew, those of cancelled calls included."""
        return self.tgi.state.tokens_generated


StartAnswering = Callable[..., Awaitable[Answering]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[StartAnswering]:
    """Start answerers with the stubs' knobs, the policy document in force and the settings of any group."""
    async with AsyncExitStack() as stack:

        async def start_answering(
            tgi: Knobs | None = None,
            rewards: RewardKnobs | None = None,
            document: Policy | None = None,
            **groups: dict[str, Any],
        ) -> Answering:
            tgi_stub = await stack.enter_async_context(TgiStub(tgi))
            reward_stub = await stack.enter_async_context(RewardStub(rewards))
            spool = tmp_path / "spool"
            settings = Settings.model_validate(
                {
                    **groups,
                    "redis": {"url": NO_REDIS},
                    "backend": {"urls": (tgi_stub.url,), **groups.get("backend", {})},
                    "reward": {"url": reward_stub.url, **groups.get("reward", {})},
                    "journal": {"spool_dir": spool},
                    "policy": {"exploration": 0.0, **groups.get("policy", {})},
                }
            )
            if document is not None:
                spool.mkdir()
                (spool / "policy.json").write_text(document.model_dump_json())
            parts = build(settings)
            await parts.journal.start()
            stack.push_async_callback(parts.journal.aclose, drain_s=0.0)
            await parts.policies.start()
            stack.push_async_callback(parts.policies.aclose)
            parts.scorer.start()
            stack.push_async_callback(parts.scorer.aclose)
            stack.push_async_callback(parts.backends.aclose)
            answerer = Answerer(parts.race, parts.backends, parts.policies, parts.journal, parts.metrics, settings)
            return Answering(answerer, parts, tgi_stub, reward_stub, spool)

        yield start_answering


@asynccontextmanager
async def server_that_sends(events: Sequence[str] | dict[str, Any]) -> AsyncIterator[str]:
    """A server of vLLM's kind that answers each chat with these events, or this body."""

    async def chat(http: web.Request) -> web.StreamResponse:
        if isinstance(events, dict):
            return web.json_response(events)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(http)
        for one in events:
            await response.write(one.encode())
        return response

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "base", "parent": None}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
