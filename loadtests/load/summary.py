"""From single requests to lines of a table, and from those to a verdict."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it began (or was due), its kind, how long it took, and what became of it.

    ``id`` is the completion's where a whole answer came: its record was acknowledged. ``problem`` is empty where all
    was as it should be.
    """

    at_s: float
    name: str
    ms: float
    status: int
    id: str
    problem: str


@dataclass(frozen=True, slots=True)
class Line:
    """All requests of a kind."""

    name: str
    requests: int
    failed: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    slowest_ms: float
    problems: dict[str, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run must keep to.

    Attributes:
        p99_ms: Each kind's 99th percentile.
        refused_p99_ms: That of callers whose request is refused: it does no work.
        failed_share: Of each kind's requests.
        least_requests: Fewer of a kind than this say nothing, so the run fails.
    """

    p99_ms: float
    refused_p99_ms: float
    failed_share: float = 0.0
    least_requests: int = 5


def read(path: Path) -> list[Request]:
    """The requests of one run, in the order in which they ended."""
    with path.open(newline="") as source:
        return [
            Request(float(row["at_s"]), row["name"], float(row["ms"]), int(row["status"]), row["id"], row["problem"])
            for row in csv.DictReader(source)
        ]


def summarise(requests: Sequence[Request]) -> list[Line]:
    """One line a kind, in the alphabet's order."""
    if not requests:
        return []
    seconds = max(one.at_s + one.ms / 1e3 for one in requests) - min(one.at_s for one in requests)
    kinds: defaultdict[str, list[Request]] = defaultdict(list)
    for one in requests:
        kinds[one.name].append(one)
    return [_line(name, kinds[name], seconds) for name in sorted(kinds)]


def _line(name: str, requests: Sequence[Request], seconds: float) -> Line:
    ms = [one.ms for one in requests]
    problems = Counter(one.problem for one in requests if one.problem)
    return Line(
        name=name,
        requests=len(requests),
        failed=problems.total(),
        per_s=len(requests) / seconds,
        p50_ms=percentile(ms, 50),
        p95_ms=percentile(ms, 95),
        p99_ms=percentile(ms, 99),
        slowest_ms=max(ms),
        problems=dict(problems.most_common()),
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """The least value that at least this share of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def broken(lines: Sequence[Line], limits: Limits, *, missing: int) -> list[str]:
    """What does not keep to the limits, in words; empty where all does.

    Args:
        lines: The run.
        limits: What it must keep to.
        missing: Acknowledged records that Redis does not have.
    """
    found = [] if lines else ["there were no requests"]
    for line in lines:
        limit_ms = limits.refused_p99_ms if line.name == "bad caller" else limits.p99_ms
        if line.requests < limits.least_requests:
            found.append(f"{line.name}: only {line.requests} requests")
        if line.failed > limits.failed_share * line.requests:
            found.append(f"{line.name}: {line.failed} of {line.requests} failed: {line.problems}")
        if line.p99_ms > limit_ms:
            found.append(f"{line.name}: 99 % took up to {line.p99_ms:.0f} ms, over {limit_ms:.0f} ms")
    if missing:
        found.append(f"{missing} acknowledged records are missing in Redis")
    return found


def over_time(requests: Sequence[Request], bucket_s: float = 1.0) -> list[tuple[float, float, float, float]]:
    """(second, requests a second, median ms, 99th percentile ms), by when requests began; failed ones count in all."""
    begin_s = min((one.at_s for one in requests), default=0.0)
    buckets: defaultdict[int, list[float]] = defaultdict(list)
    for one in requests:
        buckets[int((one.at_s - begin_s) / bucket_s)].append(one.ms)
    return [
        (bucket * bucket_s, len(ms) / bucket_s, percentile(ms, 50), percentile(ms, 99))
        for bucket, ms in sorted(buckets.items())
    ]
