"""Steady load for a long time: ``python -m loadtests.soak --minutes 20``, ``make soak``.

First the capacity of this machine is measured, with the same client and mix of requests (one in four streamed, best of
4, the TGI stub at 50 ms): a closed loop of 16. Then requests come at a constant rate, a share of that capacity, and
the gateway is sampled: memory, file descriptors, tasks of its event loop, entries that streamed calls leave on the
hub's client, records that wait for Redis. The exit code is 0 only if none of these grows, every request gets a scored
answer, and Redis has the record of each.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import time
from contextlib import aclosing
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from distill.report.svg import Margins, Plot, Spot, ticks
from loadtests import tables
from loadtests.closed_loop import closed_loop
from loadtests.faults.callers import send_chat
from loadtests.growth import Allowance, Growth, growth
from loadtests.load.plot import PANEL, panels
from loadtests.load.summary import percentile
from loadtests.records import StreamRecords
from loadtests.stack import Stack, machine, quiet_logs, stack

OUT = Path("loadtests/results/soak.json")
N = 4
LATENCY_MS = 50.0
CAPACITY_CALLERS = 16
_ARRIVE_S = 120.0
_TIMEOUT = aiohttp.ClientTimeout(total=60.0)

ALLOWED = {
    "memory_mb": Allowance(share=0.05, units=5),
    "descriptors": Allowance(share=0.10, units=10),
    "tasks": Allowance(share=0.10, units=20),
    "hub_entries": Allowance(share=0.0, units=0),
    "spool_records": Allowance(share=0.50, units=100),
}

console = Console(width=130)


@dataclass(frozen=True, slots=True)
class Sample:
    """The gateway at one moment, all worker processes together; ``spool_records`` wait for Redis."""

    second: float
    memory_mb: float
    descriptors: float
    tasks: float
    hub_entries: float
    spool_records: float


class Client:
    """Sends requests and keeps the account of them."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.outcomes: dict[str, int] = {}
        self.acknowledged: set[str] = set()
        self.ms: list[float] = []
        self._session = session
        self._number = 0

    async def ask(self) -> None:
        """Send one request, and read it to its last byte."""
        self._number += 1
        started_s = time.perf_counter()
        outcome, identity, _ = await send_chat(self._session, self._number, N)
        self.ms.append((time.perf_counter() - started_s) * 1e3)
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if identity is not None:
            self.acknowledged.add(identity)


async def capacity_per_s(running: Stack, seconds: float) -> float:
    """Measure the requests per second of a closed loop, with the client of the soak."""
    async with _session(running) as session:
        return (await closed_loop(Client(session).ask, concurrency=CAPACITY_CALLERS, seconds=seconds)).requests_per_s


async def arrive(client: Client, per_s: float, seconds: float) -> None:
    """Send requests at a constant rate, independent of earlier ones; return when the last one has ended."""
    loop = asyncio.get_running_loop()
    begin_s = loop.time()
    async with asyncio.TaskGroup() as under_way:
        for number in range(int(per_s * seconds)):
            await asyncio.sleep(max(0.0, begin_s + number / per_s - loop.time()))
            under_way.create_task(client.ask())


async def watch(running: Stack, every_s: float, samples: list[Sample]) -> None:
    """Sample the gateway again and again, until cancelled."""
    begin_s = time.monotonic()
    root = psutil.Process(running.gateway_pid)
    async with _session(running) as session:
        while True:
            processes = [root, *root.children(recursive=True)]
            async with session.get("/metrics") as response:
                gauges = _gauges(await response.text())
            samples.append(
                Sample(
                    second=time.monotonic() - begin_s,
                    memory_mb=sum(one.memory_info().rss for one in processes) / 1e6,
                    descriptors=sum(one.num_fds() for one in processes),
                    tasks=gauges["ratchet_asyncio_tasks"],
                    hub_entries=gauges["ratchet_hub_exit_stack_entries"],
                    spool_records=gauges["ratchet_journal_lag_records"],
                )
            )
            await asyncio.sleep(every_s)


def verdict(found: dict[str, Growth], outcomes: dict[str, int], missing: int) -> list[str]:
    """Return a sentence for each failure; empty if all is well."""
    failures = [f"{name} grows from {one.before:g} to {one.after:g}" for name, one in found.items() if one.grows]
    if wrong := {name: count for name, count in outcomes.items() if name != "scored"}:
        failures.append(f"clients saw {wrong}")
    if not outcomes.get("scored"):
        failures.append("nothing was answered")
    if missing:
        failures.append(f"{missing} acknowledged records are missing in Redis")
    return failures


def write_results(samples: list[Sample], facts: dict[str, object], about: dict[str, object], out: Path) -> None:
    """Write JSON, the samples as CSV, and a figure of them, side by side."""
    tables.write_result(out, {"about": about, **facts})
    names = [field.name for field in fields(Sample)]
    with out.with_suffix(".csv").open("w", newline="") as sink:
        writer = csv.writer(sink)
        writer.writerow(names)
        writer.writerows([f"{value:.2f}" for value in astuple(sample)] for sample in samples)
    drawn = [
        _panel(tables.SOAKED[name], [(one.second / 60, getattr(one, name)) for one in samples]) for name in ALLOWED
    ]
    label = "The gateway's memory, descriptors, tasks, hub client's exit stack and records waiting for Redis over time"
    out.with_suffix(".svg").write_text(panels(drawn, label), encoding="utf-8")


def _panel(title: str, curve: list[Spot]) -> Plot:
    last, high = curve[-1][0] or 1.0, max(value for _, value in curve) * 1.05 or 1.0
    plot = Plot(PANEL, (0.0, last), (0.0, high), margins=Margins(left=56, right=20))
    plot.axes("minutes", title, [(place, f"{place:g}") for place in ticks(0.0, last, 8)], ticks(0.0, high, 4))
    plot.line(curve, "new")
    return plot


async def main() -> int:
    """Measure the capacity, soak, judge; return 0 only if nothing grew, failed or is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--share", type=float, default=0.7, help="of the measured capacity")
    parser.add_argument("--capacity-s", type=float, default=15.0, help="length of the capacity measurement")
    parser.add_argument("--sample-s", type=float, default=5.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help="JSON here, CSV and SVG beside it")
    options = parser.parse_args()
    quiet_logs()
    samples: list[Sample] = []
    async with stack(latency_ms=LATENCY_MS, workers=options.workers) as running:
        per_s = await capacity_per_s(running, options.capacity_s)
        rate = per_s * options.share
        console.print(f"capacity {per_s:.1f} requests a second; soaking at {rate:.1f} for {options.minutes:g} minutes")
        async with _session(running) as session:
            client = Client(session)
            watching = asyncio.create_task(watch(running, options.sample_s, samples))
            try:
                await arrive(client, rate, options.minutes * 60)
            finally:
                watching.cancel()
                await asyncio.wait([watching])
        if not watching.cancelled():
            watching.result()
        async with aclosing(StreamRecords(running.redis)) as records:
            await records.wait_for(client.acknowledged, _ARRIVE_S)
            missing = len(records.missing(client.acknowledged))
    found = {name: growth([getattr(s, name) for s in samples], allowed) for name, allowed in ALLOWED.items()}
    failures = verdict(found, client.outcomes, missing)
    load = {"capacity_per_s": round(per_s, 1), "rate_per_s": round(rate, 1), "minutes": options.minutes}
    about: dict[str, object] = {**machine(), **load, "workers": str(options.workers)}
    times = {f"p{percent}_ms": percentile(client.ms, percent) for percent in (50, 99)}
    facts: dict[str, object] = {
        "outcomes": client.outcomes,
        **times,
        "acknowledged": len(client.acknowledged),
        "missing": missing,
        "failures": failures,
        "growth": {name: asdict(one) for name, one in found.items()},
    }
    write_results(samples, facts, about, options.out)
    print(tables.render({"about": about, **facts}))
    return int(bool(failures))


def _session(running: Stack) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(running.gateway, connector=aiohttp.TCPConnector(limit=0), timeout=_TIMEOUT)


def _gauges(text: str) -> dict[str, float]:
    return {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
