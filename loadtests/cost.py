"""Measure how cost grows with N, concurrency, the prompt and Redis: ``python -m loadtests.cost``.

One thing is varied at a time, from N = 4 at concurrency 4 with a prompt of a thousand characters and a Redis without
delay. Each point is measured on the stub alone, then with the gateway before it: the latency that the gateway adds to
the slowest of N candidates, its requests per second, and its CPU for each request. Writes JSON and one figure, prints a
line for each point.

Redis is behind a proxy of the measuring process, which delays the gateway's bytes. Requests do not wait for Redis
unless their key has limits, which all gateways count there: so Redis is measured with such a key as well.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from distill.report.svg import Margins, Plot, ticks
from gateway.api.keyfile import Key, Limits
from gateway.embedded.redis import RedisServer
from loadtests.faults.proxy import TcpProxy
from loadtests.load.plot import PANEL, panels
from loadtests.overhead import Load, Row, compare
from loadtests.stack import Stack, machine, quiet_logs, stack
from loadtests.tables import render, write_result

OUT = Path("loadtests/results/cost.json")
N = (1, 2, 4, 8, 16, 32)
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64, 128)
PROMPT_CHARACTERS = (100, 1_000, 4_000, 16_000, 64_000)
REDIS_MS = (0, 2, 10, 50, 200)
FREE, LIMITED = "rk-free", "rk-limited"


@dataclass(frozen=True, slots=True)
class Sweep:
    """A quantity that is varied; ``at`` holds its values, each with its load and the delay of Redis."""

    name: str
    unit: str
    at: Sequence[tuple[int, Load, float]]


def sweeps(seconds: float) -> list[Sweep]:
    """Return all sweeps."""
    base = Load(n=4, concurrency=4, seconds=seconds, prompt=prompt(1_000), key=FREE)
    return [
        Sweep("N", "draws", [(n, replace(base, n=n), 0.0) for n in N]),
        Sweep("concurrency", "callers", [(c, replace(base, concurrency=c), 0.0) for c in CONCURRENCY]),
        Sweep("prompt", "characters", [(c, replace(base, prompt=prompt(c)), 0.0) for c in PROMPT_CHARACTERS]),
        Sweep("Redis", "ms late", [(ms, base, ms / 1e3) for ms in REDIS_MS]),
        Sweep("Redis, a key with limits", "ms late", [(ms, replace(base, key=LIMITED), ms / 1e3) for ms in REDIS_MS]),
    ]


def prompt(characters: int) -> str:
    """Return a prompt of this length, in words of seven letters."""
    return ("harbour " * (characters // 8 + 1))[:characters]


@asynccontextmanager
async def late_redis_stack(latency_ms: float) -> AsyncIterator[tuple[Stack, TcpProxy]]:
    """Start a stack whose Redis is delayed by a proxy, with one key that has limits and one without."""
    with tempfile.TemporaryDirectory(prefix="ratchet-cost-") as folder, RedisServer(Path(folder) / "redis") as redis:
        port = urlsplit(redis.url).port
        assert port is not None
        keys = Path(folder) / "keys"
        boundless = Limits(requests_per_minute=10**9, tokens_per_minute=10**11, races_in_flight=10**6)
        lines = [_key(FREE, Limits()).line, _key(LIMITED, boundless).line]
        keys.write_text("\n".join(lines) + "\n")
        async with TcpProxy(port) as proxy:
            settings = {
                "GATEWAY_REDIS__URL": f"redis://127.0.0.1:{proxy.port}/0",
                "GATEWAY_API__KEYS_FILE": str(keys),
                "GATEWAY_RACE__BEST_OF_MAX": str(max(N)),
            }
            async with stack(latency_ms=latency_ms, workers=1, **settings) as running:
                yield running, proxy


async def measure(seconds: float, latency_ms: float) -> list[Row]:
    """Return a row for each point of each sweep."""
    rows: list[Row] = []
    async with late_redis_stack(latency_ms) as (running, proxy):
        for sweep in sweeps(seconds):
            for at, load, proxy.delay_s in sweep.at:
                row = await compare(running, load)
                rows.append({"sweep": sweep.name, "unit": sweep.unit, "at": at, **row})
                added_ms, cpu_ms = row["added_ms"], row["cpu_ms"]
                print(f"{sweep.name} {at}: +{added_ms:.1f} ms, {cpu_ms:.1f} ms of CPU", file=sys.stderr)
            proxy.delay_s = 0.0
    return rows


def figure(rows: Sequence[Row]) -> str:
    """Draw one SVG of four panels; points lie at equal distances."""
    added, cpu = ("added", "new", "added_ms"), ("CPU", "old", "cpu_ms")
    drawn = [
        _panel(rows, "N (draws)", [("N", *added), ("N", *cpu)]),
        _panel(rows, "callers at once", [("concurrency", *added), ("concurrency", *cpu)]),
        _panel(rows, "characters of the prompt", [("prompt", *added), ("prompt", *cpu)]),
        _panel(
            rows,
            "Redis late by, ms",
            [("Redis", *added), ("Redis, a key with limits", "added, key with limits", "old", "added_ms")],
        ),
    ]
    return panels(
        drawn,
        "Latency added to the slowest candidate, and CPU for each request, as each quantity grows",
    )


def _panel(rows: Sequence[Row], title: str, curves: Sequence[tuple[str, str, str, str]]) -> Plot:
    """Draw one panel; a curve is its sweep, name, class and field."""
    lines = [[float(str(row[field])) for row in rows if row["sweep"] == sweep] for sweep, _, _, field in curves]
    values = [str(row["at"]) for row in rows if row["sweep"] == curves[0][0]]
    high = max(1.0, *(value for line in lines for value in line)) * 1.05
    plot = Plot(PANEL, (0.0, len(values) - 1.0), (0.0, high), margins=Margins(left=56, right=170))
    plot.axes(title, "ms", list(enumerate(values)), ticks(0.0, high, 4))
    for line, (_, _, kind, _) in zip(lines, curves, strict=True):
        plot.line(enumerate(line), kind)
    plot.end_labels([(line[-1], name, kind) for line, (_, name, kind, _) in zip(lines, curves, strict=True)])
    return plot


def _key(secret: str, limits: Limits) -> Key:
    return Key(secret, hashlib.sha256(secret.encode()).digest(), limits=limits)


def main() -> None:
    """Measure, write the result and the figure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each load; a point has two")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of every answer of the stub")
    parser.add_argument("--out", type=Path, default=OUT, help=f"the result, as JSON, with an SVG beside it; {OUT}")
    options = parser.parse_args()
    quiet_logs()
    rows = uvloop.run(measure(options.seconds, options.latency_ms))
    about = {**machine(), "latency_ms": f"{options.latency_ms:g}"}
    result = {"about": about, "cost": rows}
    write_result(options.out, result)
    options.out.with_suffix(".svg").write_text(figure(rows))
    print(render(result))


if __name__ == "__main__":
    main()
