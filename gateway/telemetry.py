"""What the gateway says about itself: log lines and Prometheus metrics. Never a prompt or an answer.

Stages in the metrics are those of ``gateway.types.Timings``, so that a load test and an operator read the same
numbers.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Literal

import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

from gateway.errors import RewardUnavailable
from gateway.types import Outcome

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ENTRIES = (1, 2, 4, 8, 16, 32, 64, 128)
_DRAWS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
_REWARDS = (-8, -6, -4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 6, 8)
_PREFIX = "ratchet_"
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"


def configure_logging(level: str, form: Literal["json", "console"]) -> None:
    """Log to stderr through structlog, the standard library's loggers included."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # whatever stderr is when a line is written
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Their request lines carry URLs and nothing that ours lack.
    for name in ("uvicorn.access", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Metrics:
    """Every metric of one gateway process, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, histogram, gauge = self._counter, self._histogram, self._gauge
        self.requests = counter("requests_total", "HTTP requests by route and status", "route", "status")
        self.request_seconds = histogram("request_seconds", "Time from request to last byte", _SECONDS, "route")
        self.errors = counter("errors_total", "Requests that ended in an error, by kind", "kind")

        self.stage_seconds = histogram("stage_seconds", "Time of a completion by stage", _SECONDS, "stage")
        self.selections = counter("selections_total", "Completions by why their answer won", "selection")
        self.explorations = counter("explorations_total", "Completions that drew n_max uncut, to measure the curve")
        self.reduced = counter(
            "reduced_total", "Completions that raced with fewer draws than asked, for lack of permits"
        )
        self.race_draws = histogram("race_draws", "Draws that a completion's race was given (N)", _DRAWS)
        self.unjudged = counter(
            "unjudged_total", "Completions that drew only the answers wanted, for no rewards could be had"
        )
        self.deadlines = counter("deadlines_total", "Completions answered at deadline or quorum, with draws cut")
        self.candidates = counter("candidates_total", "Candidates by what became of them", "outcome")
        self.unusable = counter(
            "unusable_candidates_total", "Finished candidates that are not what was asked for, by why", "reason"
        )
        self.generated_tokens = counter("generated_tokens_total", "Tokens of all finished candidates")
        self.returned_tokens = counter("returned_tokens_total", "Tokens of the answers that were returned")
        self.winner_reward = histogram(
            "winner_reward", "Reward of the winner, by policy version and arm", _REWARDS, "policy", "arm"
        )
        # The histogram has no sum, for rewards are negative too: two counters give the mean that it cannot.
        self.winner_reward_sum = counter(
            "winner_reward_magnitude_total", "Winners' rewards added up, by their sign", "policy", "arm", "sign"
        )
        self.arms = counter("arms_total", "Completions by which of the policies served side by side answered", "arm")
        self.arm_failures = counter(
            "arm_failures_total", "Completions of the stable policy because this arm could not answer", "arm"
        )
        self.races = gauge("races_in_flight", "Races being drawn or scored now")
        self.in_flight = gauge("candidates_in_flight", "Candidates being drawn now")
        self.waiting = gauge("requests_waiting", "Requests waiting for their first permit")
        self.backend_limit = gauge("backend_limit", "Draws that may be in flight at a server", "livesum", "server")
        self.backend_ejected = gauge(
            "backend_ejected",
            "Workers that pass a server over, by why",
            "livesum",
            "server",
            "fault",
        )
        self.backend_without_adapter = gauge(
            "backend_without_adapter", "Workers that found a server without an adapter in use", "livesum", "server"
        )
        self.backend_moves = counter(
            "backend_moves_total", "Draws that another server answered too: retries and hedged races", "how"
        )
        self.requests_contained = gauge("requests_contained", "Requests that broke two servers within a minute")
        self.backend_refusals = counter(
            "backend_refusals_total",
            "Draws that a server refused for lack of capacity; each waits and is sent again",
            "server",
        )

        self.tasks = gauge("asyncio_tasks", "Tasks of the event loop; flat under constant load")
        self.hub_held = gauge("hub_exit_stack_entries", "What ended calls have left on the hub's clients; 0, or a leak")

        self.policy_n = gauge("policy_n", "N of the policy in force", "mostrecent")
        self.policy_version = gauge("policy_version", "Version of the policy in force", "mostrecent")
        self.policy_second_share = gauge(
            "policy_second_share", "Share of conversations that canary or holdback answers; 0 without one", "mostrecent"
        )

        self.journal_lag_records = gauge("journal_lag_records", "Records on disk that Redis has not taken")
        self.journal_lag_bytes = gauge("journal_lag_bytes", "Bytes on disk that Redis has not taken")
        self.journal_not_durable = counter("journal_not_durable_total", "Completions whose record the disk refused")
        self.journal_lost_records = gauge("journal_lost_records", "Records that neither disk nor Redis took")
        self.journal_stream_ratio = gauge(
            "journal_stream_ratio", "Share of GATEWAY_REDIS__STREAM_MAX_RECORDS that the stream holds", "mostrecent"
        )
        self.journal_stream_full = gauge(
            "journal_stream_full", "1 while Redis has no room for records, so that they wait on disk", "livemax"
        )
        self.redis_connected = gauge("redis_connected", "1 while records reach Redis", "min")

        self.reward_available = gauge("reward_available", "1 while rewards can be had, 0 while none can", "min")
        self.reward_away = gauge("reward_servers_away", "Reward servers that failed repeatedly and are not asked now")
        self.reward_batch_entries = histogram("reward_batch_entries", "Answers in one batch", _ENTRIES)
        self.reward_batch_tokens = histogram("reward_batch_tokens", "Padded tokens in one batch", _TOKENS)
        self.reward_batch_padding = counter("reward_batch_padding_tokens_total", "Padding among the batches' tokens")
        self.reward_wait_seconds = histogram("reward_wait_seconds", "Longest wait of an answer for its batch", _SECONDS)
        self.reward_run_seconds = histogram("reward_run_seconds", "Time to score one batch", _SECONDS)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(_PREFIX + name, help_text, labels, buckets=buckets, registry=self.registry)

    def _gauge(
        self,
        name: str,
        help_text: str,
        mode: Literal["livesum", "livemax", "mostrecent", "min"] = "livesum",
        *labels: str,
    ) -> Gauge:
        return Gauge(_PREFIX + name, help_text, labels, registry=self.registry, multiprocess_mode=mode)

    def completed(self, outcome: Outcome) -> None:
        """Count one completion."""
        self.selections.labels(outcome.selection.value).inc()
        self.generated_tokens.inc(outcome.generated_tokens)
        self.returned_tokens.inc(sum(c.answer.completion_tokens for c in outcome.winners if c.answer))
        self.explorations.inc(outcome.plan.exploration)
        self.race_draws.observe(outcome.n_run)
        unjudged = outcome.scoring_error == RewardUnavailable.__name__ and outcome.n_run == outcome.plan.n_returned
        self.unjudged.inc(unjudged)
        self.reduced.inc(outcome.n_run < outcome.plan.n_asked and not unjudged)
        self.deadlines.inc(outcome.deadline_hit)
        for candidate in outcome.candidates:
            self.candidates.labels("finished" if candidate.answer else type(candidate.error).__name__).inc()
            if candidate.unusable is not None:
                self.unusable.labels(candidate.unusable.value).inc()
        if (reward := outcome.winners[0].reward) is not None:
            labels = (str(outcome.plan.policy_version), outcome.plan.arm.name)
            self.winner_reward.labels(*labels).observe(reward)
            for sign, magnitude in (("positive", max(reward, 0.0)), ("negative", max(-reward, 0.0))):
                self.winner_reward_sum.labels(*labels, sign).inc(magnitude)  # both exist: one is taken from the other
        self.arms.labels(outcome.plan.arm.name).inc()
        if outcome.plan.arm_failed is not None:
            self.arm_failures.labels(outcome.plan.arm_failed).inc()
        for stage in ("queue", "generate", "score", "journal", "overhead"):
            self.stage_seconds.labels(stage).observe(getattr(outcome.timings, f"{stage}_ms") / 1e3)

    def scored_batch(self, entries: int, tokens: int, padded_tokens: int, wait_ms: float, run_ms: float) -> None:
        """Count one batch of the reward model."""
        self.reward_batch_entries.observe(entries)
        self.reward_batch_tokens.observe(padded_tokens)
        self.reward_batch_padding.inc(padded_tokens - tokens)
        self.reward_wait_seconds.observe(wait_ms / 1e3)
        self.reward_run_seconds.observe(run_ms / 1e3)

    def render(self) -> tuple[bytes, str]:
        """The exposition text and its content type; of all workers where there are several."""
        registry = self.registry
        if MULTIPROCESS_DIR in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
