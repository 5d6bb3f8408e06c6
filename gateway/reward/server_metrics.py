"""Metrics of the reward server; they have the gateway's names if they mean the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from gateway.types import BatchStats

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ENTRIES = (1, 2, 4, 8, 16, 32, 64, 128)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class ServerMetrics:
    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._calls = Counter(
            "ratchet_reward_calls_total", "Calls of /classify by status", ("status",), registry=registry
        )
        self._batches = Counter("ratchet_reward_batches_total", "Batches by outcome", ("outcome",), registry=registry)
        self._entries = Histogram(
            "ratchet_reward_batch_entries", "Answers in one batch", buckets=_ENTRIES, registry=registry
        )
        self._padded = Histogram(
            "ratchet_reward_batch_tokens", "Padded tokens in one batch", buckets=_TOKENS, registry=registry
        )
        self._tokens = Counter("ratchet_reward_tokens_total", "Tokens scored, without padding", registry=registry)
        self._wait = Histogram(
            "ratchet_reward_wait_seconds", "Wait of a batch's oldest answer", buckets=_SECONDS, registry=registry
        )
        self._run = Histogram(
            "ratchet_reward_batch_seconds", "Time of a batch in the model", buckets=_SECONDS, registry=registry
        )
        self._waiting = Gauge("ratchet_reward_waiting", "Answers waiting for the model", registry=registry)

    def batch(self, stats: BatchStats) -> None:
        self._batches.labels("failed" if stats.failed else "scored").inc()
        self._entries.observe(stats.entries)
        self._padded.observe(stats.padded_tokens)
        self._tokens.inc(stats.tokens)
        self._wait.observe(stats.wait_ms / 1e3)
        self._run.observe(stats.run_ms / 1e3)

    def counted(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def counting(request: Request) -> Response:
            response = await handler(request)
            self._calls.labels(str(response.status_code)).inc()
            return response

        return counting

    def render(self, waiting: int) -> tuple[bytes, str]:
        self._waiting.set(waiting)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
