"""Telemetry: metrics that add up, log lines that are JSON."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from gateway.errors import BackendFailed
from gateway.telemetry import MULTIPROCESS_DIR, Metrics, configure_logging
from gateway.types import Answer, Arm, BatchStats, Candidate, Outcome, Plan, Selection, Timings


def outcome() -> Outcome:
    answers = [Answer("a", "stop", 3, tokens) for tokens in (5, 7)]
    candidates = [Candidate(i, i, answer=answer, reward=float(i)) for i, answer in enumerate(answers)]
    candidates.append(Candidate(2, 2, error=BackendFailed("no")))
    plan = Plan(
        n_asked=4,
        n_ordinary=2,
        seed=1,
        arm=Arm("stable", None, 2),
        policy_version=9,
        exploration=True,
        arm_failed="canary",
    )
    return Outcome(plan, 3, candidates, [candidates[1]], Selection.SCORED, Timings(), deadline_hit=True)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_completion_is_counted_by_its_outcome() -> None:
    metrics = Metrics()
    metrics.completed(replace(outcome(), timings=Timings(generate_ms=250.0, total_ms=260.0)))
    assert value(metrics, "ratchet_selections_total", selection="scored") == 1
    assert value(metrics, "ratchet_candidates_total", outcome="finished") == 2
    assert value(metrics, "ratchet_candidates_total", outcome="BackendFailed") == 1
    assert value(metrics, "ratchet_generated_tokens_total") == 12
    assert value(metrics, "ratchet_returned_tokens_total") == 7
    assert value(metrics, "ratchet_explorations_total") == 1
    assert value(metrics, "ratchet_reduced_total") == 1
    assert value(metrics, "ratchet_deadlines_total") == 1
    assert value(metrics, "ratchet_winner_reward_bucket", policy="9", arm="stable", le="0.5") == 0
    assert value(metrics, "ratchet_winner_reward_bucket", policy="9", arm="stable", le="1.0") == 1
    assert value(metrics, "ratchet_winner_reward_magnitude_total", policy="9", arm="stable", sign="positive") == 1
    assert value(metrics, "ratchet_winner_reward_count", policy="9", arm="stable") == 1
    assert value(metrics, "ratchet_arms_total", arm="stable") == 1
    assert value(metrics, "ratchet_arm_failures_total", arm="canary") == 1
    assert value(metrics, "ratchet_stage_seconds_sum", stage="generate") == 0.25
    assert value(metrics, "ratchet_stage_seconds_sum", stage="overhead") == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("scoring_error", "n_run", "unjudged", "reduced"),
    [
        ("RewardUnavailable", 1, 1, 0),
        ("RewardUnavailable", 3, 0, 1),
        ("RewardTimeout", 1, 0, 1),
        (None, 1, 0, 1),
        (None, 3, 0, 1),
        (None, 4, 0, 0),
    ],
)
def test_a_race_without_available_rewards_is_not_counted_as_reduced(
    scoring_error: str | None, n_run: int, unjudged: int, reduced: int
) -> None:
    metrics = Metrics()
    metrics.completed(replace(outcome(), scoring_error=scoring_error, n_run=n_run))
    assert (unjudged, reduced) == (value(metrics, "ratchet_unjudged_total"), value(metrics, "ratchet_reduced_total"))


def test_the_mean_reward_can_be_computed_although_rewards_are_negative() -> None:
    metrics = Metrics()
    for reward in (1.5, -0.5, -4.0):
        told = outcome()
        told.winners[0].reward = reward
        metrics.completed(told)
    labels = {"policy": "9", "arm": "stable"}
    assert value(metrics, "ratchet_winner_reward_magnitude_total", **labels, sign="positive") == 1.5
    assert value(metrics, "ratchet_winner_reward_magnitude_total", **labels, sign="negative") == 4.5


def test_a_batch_is_counted_with_its_padding() -> None:
    metrics = Metrics()
    metrics.scored_batch(
        BatchStats(entries=4, tokens=90, padded_tokens=100, wait_ms=2.0, run_ms=30.0, waiting=0, failed=False)
    )
    assert value(metrics, "ratchet_reward_batch_padding_tokens_total") == 10
    assert value(metrics, "ratchet_reward_batch_entries_sum") == 4
    assert value(metrics, "ratchet_reward_run_seconds_sum") == 0.03


def test_with_several_workers_the_metrics_of_all_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus' multi-process mode reads every worker's file; this folder has none, so nothing is rendered."""
    metrics = Metrics()
    metrics.explorations.inc()
    assert b"ratchet_explorations_total 1.0" in metrics.render()[0]
    monkeypatch.setenv(MULTIPROCESS_DIR, str(tmp_path))
    assert metrics.render()[0] == b""


def test_log_lines_are_json_with_an_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    structlog.get_logger().info("something", count=3)
    structlog.get_logger().debug("too detailed")
    logging.getLogger("somewhere.else").warning("odd")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("something", "info"), ("odd", "warning")]
    assert lines[0]["count"] == 3
