"""Log lines and Prometheus metrics of the gateway. They never contain a prompt or an answer.

The stages in the metrics are those of ``gateway.types.Timings``: a load test and an operator read the same numbers.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import partial
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
from gateway.types import BatchStats, Outcome

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ENTRIES = (1, 2, 4, 8, 16, 32, 64, 128)
_DRAWS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
_REWARDS = (-8, -6, -4, -3, -2, -1, -0.5, 0, 0.5, 1, 2, 3, 4, 6, 8)
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
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # looked up for each line: tests replace it
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Their lines about requests add nothing to ours but URLs.
    for name in ("uvicorn.access", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Metrics:
    """All metrics of one gateway process, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counter = partial(Counter, namespace="ratchet", registry=self.registry)
        self._gauge = partial(Gauge, namespace="ratchet", registry=self.registry, multiprocess_mode="livesum")
        self._histogram = partial(Histogram, namespace="ratchet", registry=self.registry)
        self._add_requests()
        self._add_races()
        self._add_servers()
        self._add_policy_and_journal()
        self._add_rewards()

    def _add_requests(self) -> None:
        self.requests = self._counter("requests_total", "HTTP requests by route and status", ("route", "status"))
        self.request_seconds = self._histogram(
            "request_seconds", "Time from request to last byte", ("route",), buckets=_SECONDS
        )
        self.errors = self._counter("errors_total", "Requests that ended in an error, by kind", ("kind",))
        self.tasks = self._gauge("asyncio_tasks", "Tasks of the event loop; flat under constant load")
        self.waiting = self._gauge("requests_waiting", "Requests waiting for their first permit")

    def _add_races(self) -> None:
        counter, gauge, histogram = self._counter, self._gauge, self._histogram
        self.stage_seconds = histogram("stage_seconds", "Time of a completion by stage", ("stage",), buckets=_SECONDS)
        self.selections = counter("selections_total", "Completions by reason of the selection", ("selection",))
        self.explorations = counter("explorations_total", "Completions that drew n_max uncut, to measure the curve")
        self.reduced = counter("reduced_total", "Completions that drew fewer than asked, for lack of permits")
        self.race_draws = histogram("race_draws", "Candidates that a completion's race drew (N)", buckets=_DRAWS)
        self.unjudged = counter(
            "unjudged_total", "Completions that drew only the answers wanted, because no rewards were available"
        )
        self.deadlines = counter("deadlines_total", "Completions answered at deadline or quorum, with candidates cut")
        self.candidates = counter("candidates_total", "Candidates by outcome: finished, or the error", ("outcome",))
        self.unusable = counter(
            "unusable_candidates_total", "Finished candidates that are not what was asked for, by reason", ("reason",)
        )
        self.generated_tokens = counter("generated_tokens_total", "Tokens of all finished candidates")
        self.returned_tokens = counter("returned_tokens_total", "Tokens of the answers that were returned")
        labels = ("policy", "arm")
        self.winner_reward = histogram(
            "winner_reward", "Reward of the winner, by policy version and arm", labels, buckets=_REWARDS
        )
        # Rewards are negative too, so the histogram has no sum: the mean is taken from these two counters.
        self.winner_reward_sum = counter(
            "winner_reward_magnitude_total", "Sum of the winners' rewards, by sign", (*labels, "sign")
        )
        self.arms = counter("arms_total", "Completions by the arm that answered", ("arm",))
        self.arm_failures = counter(
            "arm_failures_total", "Completions of the stable policy because this arm could not answer", ("arm",)
        )
        self.races = gauge("races_in_flight", "Races being drawn or scored now")
        self.in_flight = gauge("candidates_in_flight", "Candidates being drawn now")

    def _add_servers(self) -> None:
        counter, gauge = self._counter, self._gauge
        self.backend_limit = gauge("backend_limit", "Candidates that may be in flight at a server", ("server",))
        self.backend_ejected = gauge(
            "backend_ejected", "Workers that do not use a server, by fault", ("server", "fault")
        )
        self.backend_without_adapter = gauge(
            "backend_without_adapter", "Workers that found a server without an adapter in use", ("server",)
        )
        self.backend_moves = counter(
            "backend_moves_total", "Candidates that another server answered too: retries and hedged races", ("how",)
        )
        self.requests_contained = gauge("requests_contained", "Requests that broke two servers within a minute")
        self.backend_refusals = counter(
            "backend_refusals_total",
            "Candidates that a server refused for lack of capacity; each waits and is sent again",
            ("server",),
        )
        self.hub_held = gauge("hub_exit_stack_entries", "What ended calls have left on the hub's clients; 0, or a leak")

    def _add_policy_and_journal(self) -> None:
        counter, gauge, newest = self._counter, self._gauge, partial(self._gauge, multiprocess_mode="mostrecent")
        self.policy_n = newest("policy_n", "N of the current policy")
        self.policy_version = newest("policy_version", "Version of the current policy")
        self.policy_second_share = newest(
            "policy_second_share", "Share of conversations that canary or holdback answers; 0 without one"
        )
        self.journal_lag_records = gauge("journal_lag_records", "Records on disk that Redis has not taken")
        self.journal_lag_bytes = gauge("journal_lag_bytes", "Bytes on disk that Redis has not taken")
        self.journal_not_durable = counter("journal_not_durable_total", "Completions whose record the disk refused")
        self.journal_lost_records = gauge("journal_lost_records", "Records that neither disk nor Redis took")
        self.journal_stream_ratio = newest(
            "journal_stream_ratio", "Share of GATEWAY_REDIS__STREAM_MAX_RECORDS that the stream holds"
        )
        self.journal_stream_full = gauge(
            "journal_stream_full",
            "1 while Redis has no room for records, so that they wait on disk",
            multiprocess_mode="livemax",
        )
        self.redis_connected = gauge("redis_connected", "1 while records reach Redis", multiprocess_mode="min")

    def _add_rewards(self) -> None:
        histogram = self._histogram
        self.reward_available = self._gauge(
            "reward_available", "1 while rewards are available, 0 while none is", multiprocess_mode="min"
        )
        self.reward_away = self._gauge(
            "reward_servers_away", "Reward servers that failed repeatedly and are not asked now"
        )
        self.reward_batch_entries = histogram("reward_batch_entries", "Answers in one batch", buckets=_ENTRIES)
        self.reward_batch_tokens = histogram("reward_batch_tokens", "Padded tokens in one batch", buckets=_TOKENS)
        self.reward_batch_padding = self._counter(
            "reward_batch_padding_tokens_total", "Padding among the batches' tokens"
        )
        self.reward_wait_seconds = histogram(
            "reward_wait_seconds", "Longest wait of an answer for its batch", buckets=_SECONDS
        )
        self.reward_run_seconds = histogram("reward_run_seconds", "Time to score one batch", buckets=_SECONDS)

    def completed(self, outcome: Outcome) -> None:
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
                self.winner_reward_sum.labels(*labels, sign).inc(magnitude)  # both, so that one can be subtracted
        self.arms.labels(outcome.plan.arm.name).inc()
        if outcome.plan.arm_failed is not None:
            self.arm_failures.labels(outcome.plan.arm_failed).inc()
        for stage in ("queue", "generate", "score", "journal", "overhead"):
            self.stage_seconds.labels(stage).observe(getattr(outcome.timings, f"{stage}_ms") / 1e3)

    def scored_batch(self, batch: BatchStats) -> None:
        self.reward_batch_entries.observe(batch.entries)
        self.reward_batch_tokens.observe(batch.padded_tokens)
        self.reward_batch_padding.inc(batch.padded_tokens - batch.tokens)
        self.reward_wait_seconds.observe(batch.wait_ms / 1e3)
        self.reward_run_seconds.observe(batch.run_ms / 1e3)

    def render(self) -> tuple[bytes, str]:
        """Return the exposition text and its content type, over all workers if there are several."""
        registry = self.registry
        if MULTIPROCESS_DIR in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
