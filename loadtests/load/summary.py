"""Requests summarised as lines of a table, and the verdict on those lines."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its start (or due time), kind, duration and outcome.

    ``id`` is the completion's if a whole answer came: its record was acknowledged. ``problem`` is empty if there was
    none.
    """

    at_s: float
    name: str
    ms: float
    status: int
    id: str
    problem: str


@dataclass(frozen=True, slots=True)
class Line:
    """All requests of a kind, summarised."""

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
    """The limits of a run.

    Attributes:
        p99_ms: Each kind's 99th percentile.
        refused_p99_ms: The same for requests that must be refused: they do no work.
        failed_share: Largest share of failures of each kind.
        least_requests: A kind with fewer requests fails the run: it proves nothing.
    """

    p99_ms: float
    refused_p99_ms: float
    failed_share: float = 0.0
    least_requests: int = 5


def read(path: Path) -> list[Request]:
    """Read the requests of one run, in the order in which they ended."""
    with path.open(newline="") as source:
        return [
            Request(float(row["at_s"]), row["name"], float(row["ms"]), int(row["status"]), row["id"], row["problem"])
            for row in csv.DictReader(source)
        ]


def summarise(requests: Sequence[Request]) -> list[Line]:
    """Return one line for each kind, in alphabetical order."""
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
    """Return the least value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def broken(lines: Sequence[Line], limits: Limits, *, missing: int) -> list[str]:
    """Return a sentence for each limit that was not kept.

    Args:
        lines: The run.
        limits: The limits.
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
    """Return (second, requests per second, median ms, 99th percentile ms), by start; failed requests count too."""
    begin_s = min((one.at_s for one in requests), default=0.0)
    buckets: defaultdict[int, list[float]] = defaultdict(list)
    for one in requests:
        buckets[int((one.at_s - begin_s) / bucket_s)].append(one.ms)
    return [
        (bucket * bucket_s, len(ms) / bucket_s, percentile(ms, 50), percentile(ms, 99))
        for bucket, ms in sorted(buckets.items())
    ]
