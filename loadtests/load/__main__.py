"""Load that behaves like applications, and limits it must keep to: ``python -m loadtests.load``, ``make load``.

First a closed loop: people in chats, readers of streams, batch jobs, long prompts, clients that hang up, clients with
mistakes. Then an open one: requests at a constant rate, timed from when they were due. The gateway stands before the
TGI stub (``--latency-ms`` an answer, no GPU), or, with ``--embedded``, is the embedded stack with its real model. After
each phase every completion that a client got whole is looked for in Redis by its id. The exit code is 0 only if every
kind of request kept to its limits and no record is missing. Client, stubs, Redis and gateway share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console

from loadtests import tables
from loadtests.load.plot import figure, page
from loadtests.load.run import Phase, run
from loadtests.load.summary import Limits, Line, Request, broken, over_time, summarise
from loadtests.load.target import Target, on_embedded, on_stub
from loadtests.records import StreamRecords
from loadtests.stack import machine, quiet_logs

OUT = Path("loadtests/results/load.json")
_ARRIVE_S = 60.0

console = Console(width=150)


@dataclass(frozen=True, slots=True)
class Measured:
    """One phase with its requests and verdict."""

    phase: Phase
    requests: list[Request]
    lines: list[Line]
    missing: int
    failures: list[str]


async def measure(target: Target, phase: Phase, limits: Limits, folder: Path) -> Measured:
    """Run one phase and judge it."""
    console.print(f"{phase.shape} loop, {phase.load:g} {'users' if phase.shape == 'closed' else 'requests a second'}")
    requests = await run(target.url, phase, folder)
    acknowledged = {one.id for one in requests if one.id}
    async with aclosing(StreamRecords(target.redis_url)) as records:
        await records.wait_for(acknowledged, _ARRIVE_S)
        missing = len(records.missing(acknowledged))
    lines = summarise(requests)
    return Measured(phase, requests, lines, missing, broken(lines, limits, missing=missing))


def write_results(measured: Sequence[Measured], about: dict[str, object], out: Path) -> None:
    """Write JSON, CSV and a page of plots, side by side, and print the table and the failures."""
    phases = [
        {
            **asdict(one.phase),
            "missing": one.missing,
            "failures": one.failures,
            "lines": [asdict(line) for line in one.lines],
        }
        for one in measured
    ]
    result = {"about": about, "phases": phases}
    tables.write_result(out, result)
    print(tables.render(result))
    for failure in (failure for one in measured for failure in one.failures):
        console.print(failure, style="red")
    names = [field.name for field in fields(Line) if field.name != "problems"]
    with out.with_suffix(".csv").open("w", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(["shape", *names])
        writer.writerows(
            [one.phase.shape, *(getattr(x, name) for name in names)] for one in measured for x in one.lines
        )
    figures = []
    for one in measured:
        answers = [request for request in one.requests if request.id]
        series = over_time(answers)
        title = f"{one.phase.shape.capitalize()} loop"
        figures.append(
            figure(f"{title}: answers", "answers a second", [("", "new", [(s, r) for s, r, _, _ in series])])
        )
        latencies = [
            ("p99", "old", [(second, high) for second, _, _, high in series]),
            ("median", "new", [(second, middle) for second, _, middle, _ in series]),
        ]
        figures.append(figure(f"{title}: time to the whole answer", "milliseconds", latencies))
    out.with_suffix(".html").write_text(page("Ratchet under load", about, figures), encoding="utf-8")


async def main() -> int:
    """Measure, print and write the result; return 0 only if all limits were kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedded", action="store_true", help="the embedded stack instead of the stub")
    parser.add_argument("--users", type=float, help="of the closed loop; default 40, embedded 4")
    parser.add_argument("--rate", type=float, help="requests a second of the open loop; default 25, embedded 0.2")
    parser.add_argument("--seconds", type=float, help="a phase; default 60, embedded 180")
    parser.add_argument("--shapes", nargs="+", choices=["closed", "open"], default=["closed", "open"])
    parser.add_argument("--best-of", type=int, default=4)
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of the stub")
    parser.add_argument("--workers", type=int, default=1, help="of the gateway, before the stub")
    parser.add_argument("--p99-ms", type=float, help="limit for every kind of answer; default 1000, embedded 120000")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON here, CSV and HTML beside it")
    options = parser.parse_args()
    quiet_logs()
    embedded = options.embedded
    load = {"closed": options.users or (4 if embedded else 40), "open": options.rate or (0.2 if embedded else 25)}
    seconds = options.seconds or (180.0 if embedded else 60.0)
    p99_ms = options.p99_ms or (120_000.0 if embedded else 1000.0)
    # The embedded model's context is too short for long documents, and a call to it takes seconds.
    limits = Limits(p99_ms, refused_p99_ms=5000.0 if embedded else 500.0, least_requests=1 if embedded else 5)
    extra = {"max_tokens": 32, "long_prompt_words": 150} if embedded else {}
    phases = [Phase(shape, load[shape], seconds, options.best_of, **extra) for shape in options.shapes]
    target = on_embedded({}) if embedded else on_stub(options.latency_ms, options.workers, {})
    async with target as running:
        with tempfile.TemporaryDirectory(prefix="ratchet-locust-") as folder:
            measured = [await measure(running, phase, limits, Path(folder)) for phase in phases]
    about = machine()
    backend = "embedded" if embedded else f"stub, {options.latency_ms:g} ms"
    write_results(
        measured, {**about, "backend": backend, "workers": options.workers, "limits": asdict(limits)}, options.out
    )
    return int(any(one.failures for one in measured))


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
