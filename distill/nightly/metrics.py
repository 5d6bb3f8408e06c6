"""The last night as a Prometheus textfile, for node_exporter's collector. Written at the end of every attempt."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from distill.nightly.context import STEPS
from distill.run_dir import RunDir
from gateway.files import write_atomically

_PREFIX = "ratchet_night_"


def write_metrics(path: Path, run: RunDir | None, exit_code: int) -> None:
    """Tell how the last attempt at a night ended, and what its steps took.

    Args:
        path: The textfile.
        run: The night; None when there was none to begin.
        exit_code: How it ended.
    """
    registry = CollectorRegistry()

    def gauge(name: str, meaning: str, value: float) -> None:
        Gauge(_PREFIX + name, meaning, registry=registry).set(value)

    gauge("last_end_timestamp_seconds", "When the last attempt at a night ended.", time.time())
    gauge("exit_code", "How the last attempt ended; 0 is well.", exit_code)
    gauge("finished", "Whether that night came to its end.", run is not None and run.finished)
    if run is not None:
        results = {step: run.result(step) or {} for step in STEPS}
        gauge("attempts", "How often that night was begun.", run.attempts)
        gauge("lost_records", "Records that left Redis before they were archived.", results["collect"].get("lost", 0))
        gauge("examples", "Winners that could train.", results["curate"].get("examples", 0))
        gauge("held_out_prompts", "Prompts that measured.", results["draw"].get("prompts", 0))
        gauge("promoted", "Whether a new adapter went live.", bool(results["promote"]))
        if "n_now" in results["gate"]:
            gauge("n_before", "N before the night.", results["gate"]["n_now"])
            gauge("n_allowed", "N that the gate allowed.", results["gate"]["n_new"])
        seconds = Gauge(_PREFIX + "step_seconds", "What the steps took.", ["step"], registry=registry)
        for step in STEPS:
            if (taken := run.seconds(step)) > 0:
                seconds.labels(step).set(taken)
    write_atomically(path, generate_latest(registry))
    path.chmod(0o644)  # the collector is another user
