"""The last night as a Prometheus textfile for node_exporter's collector, written at the end of every attempt."""

from __future__ import annotations

import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from distill.errors import DataError
from distill.nightly.results import (
    STEPS,
    CollectResult,
    CurateResult,
    DrawResult,
    GateResult,
    PromoteResult,
    Result,
    read_result,
)
from distill.run_dir import RunDir
from gateway.files import write_atomically

_PREFIX = "ratchet_night_"


def write_metrics(path: Path, run: RunDir | None, exit_code: int) -> None:
    """Write how the last attempt at a night ended, and the time that its steps took.

    Args:
        path: The textfile.
        run: The night; None if none could start.
        exit_code: The exit code of the attempt.
    """
    registry = CollectorRegistry()

    def gauge(name: str, meaning: str, value: float) -> None:
        Gauge(_PREFIX + name, meaning, registry=registry).set(value)

    gauge("last_end_timestamp_seconds", "When the last attempt at a night ended.", time.time())
    gauge("exit_code", "Exit code of the last attempt; 0 means it succeeded.", exit_code)
    gauge("finished", "Whether that night finished.", run is not None and run.finished)
    if run is not None:
        collected, curated = _read(run, CollectResult), _read(run, CurateResult)
        drawn, decided = _read(run, DrawResult), _read(run, GateResult)
        gauge("attempts", "How often that night was started or resumed.", run.attempts)
        gauge("lost_records", "Records that left Redis before they were archived.", collected.lost if collected else 0)
        gauge("examples", "Winners that could train.", curated.examples if curated else 0)
        gauge("held_out_prompts", "Prompts that were measured.", drawn.prompts if drawn else 0)
        gauge("promoted", "Whether a new adapter went live.", _read(run, PromoteResult) is not None)
        if decided is not None:
            gauge("n_before", "N before the night.", decided.n_now)
            gauge("n_allowed", "N that the gate allowed.", decided.n_new)
        seconds = Gauge(_PREFIX + "step_seconds", "Seconds that the steps took.", ["step"], registry=registry)
        for step in STEPS:
            if (taken := run.seconds(step)) > 0:
                seconds.labels(step).set(taken)
    write_atomically(path, generate_latest(registry))
    path.chmod(0o644)  # node_exporter runs as another user


def _read(run: RunDir, kind: type[Result]) -> Result | None:
    """Return a step's result; None if its marker is damaged: the night's own error names it."""
    try:
        return read_result(run, kind)
    except DataError:
        return None
