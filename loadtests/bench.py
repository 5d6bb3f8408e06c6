"""``make bench``: the gateway's overhead by stage, beside other gateways, and its parts alone.

Four parts, each of which can run alone (``--only``): the gateway's overhead by stage at several N and concurrencies;
other best-of-N gateways on the same stub in the same run, in rounds whose median counts; the reward batcher; the
journal. The result is JSON with machine, commit and date, written after each part; its tables are printed as in
README.md (``python -m loadtests.tables`` writes them there).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from loadtests import journal, overhead, reward, tables
from loadtests.overhead import Load, Row, compare, direct
from loadtests.peers import its_hub, its_iaas, optillm, tensorzero
from loadtests.peers.peer import Peer, Race
from loadtests.stack import Surroundings, gateway, machine, quiet_logs, surroundings

OUT = Path("loadtests/results/bench.json")
PARTS = ("overhead", "peers", "reward", "journal")
PEERS: Sequence[Peer] = (tensorzero, its_hub, its_iaas, optillm)
PEERS_N = 4


async def side_by_side(
    around: Surroundings, workers: Sequence[int], concurrencies: Sequence[int], seconds: float
) -> AsyncIterator[Row]:
    """Measure this gateway, then each peer, at N = 4. A peer that cannot be installed is reported and left out."""
    once_ms, slowest_ms = {}, {}
    for count in workers:
        async with gateway(around, workers=count) as running:
            for concurrency in concurrencies:
                once_ms[concurrency] = (await direct(around.backend, Load(1, concurrency, seconds))).p50_ms
                ours = await compare(running, Load(PEERS_N, concurrency, seconds))
                slowest_ms[concurrency] = float(str(ours["stub_p50_ms"]))
                who = f"this gateway, {count} worker{'s' if count > 1 else ''}: a reward model"
                yield {**ours, "who": who, "waits": 1, "beyond_waits_ms": ours["added_ms"]}
    for peer in PEERS:
        print(f"{peer.NAME} ({', '.join(peer.REQUIREMENTS)})", file=sys.stderr)
        try:
            async with aclosing(peer.measure(Race(around.backend, PEERS_N, concurrencies, seconds))) as results:
                async for measured, cpu_ms in results:
                    added_ms = measured.p50_ms - slowest_ms[measured.concurrency]
                    further_ms = (peer.waits(PEERS_N) - 1) * once_ms[measured.concurrency]
                    yield {
                        "who": f"{peer.NAME} ({peer.REQUIREMENTS[0]})",
                        "waits": peer.waits(PEERS_N),
                        **asdict(measured),
                        "added_ms": added_ms,
                        "beyond_waits_ms": added_ms - further_ms,
                        "cpu_ms": cpu_ms,
                    }
        except RuntimeError as error:
            print(f"not measured further: {error}", file=sys.stderr)


async def on_stack(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Measure the parts that need a running gateway."""
    async with surroundings(latency_ms=options.latency_ms) as around:
        if "overhead" in options.only:
            async with gateway(around, workers=options.workers[0]) as running:
                rows = overhead.run(running, options.n, options.concurrency, options.seconds)
                found["overhead"] = [row async for row in printed(rows)]
            tables.write_result(options.out, found)
        if "peers" in options.only:
            rounds: list[Row] = []
            for _ in range(options.rounds):
                rows = side_by_side(around, options.workers, options.concurrency, options.seconds)
                rounds += [row async for row in printed(rows)]
            found["peers"] = middle(rounds)
            tables.write_result(options.out, found)


def middle(rounds: Sequence[Row]) -> list[Row]:
    """Return a row for each gateway and concurrency: the medians over the rounds, and the extremes of the rate.

    A shared machine is not equally fast in every minute: a gateway measured in a slow minute would look slow.
    """
    found: list[Row] = []
    for who, concurrency in dict.fromkeys((row["who"], row["concurrency"]) for row in rounds):
        same = [row for row in rounds if (row["who"], row["concurrency"]) == (who, concurrency)]
        numbers = {name: median(float(str(row[name])) for row in same) for name in same[0] if name != "who"}
        rates = [float(str(row["requests_per_s"])) for row in same]
        whole = {name: same[0][name] for name in ("who", "waits", "concurrency")}
        found.append({**numbers, **whole, "least_per_s": min(rates), "most_per_s": max(rates), "rounds": len(same)})
    return found


async def printed(rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
    """Yield the same rows, and print each as it comes: a run takes minutes."""
    async for row in rows:
        short = {name: round(value, 1) if isinstance(value, float) else value for name, value in row.items()}
        print(short, file=sys.stderr)
        yield row


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts, one after the other."""
    about = {**machine(), "latency_ms": f"{options.latency_ms:g}", "workers": " and ".join(map(str, options.workers))}
    found: dict[str, Any] = {"about": about}
    if {"overhead", "peers"} & set(options.only):
        uvloop.run(on_stack(options, found))
    if "reward" in options.only:
        words = ["--devices", "cpu", "cuda", "--seconds", str(2 * options.seconds), "--repeats", "3"]
        found["reward"] = list(reward.run(reward.options_from(words)))
        tables.write_result(options.out, found)
    if "journal" in options.only:
        found["journal"] = asyncio.run(journal.run(options.seconds))
        tables.write_result(options.out, found)
    return found


def main() -> None:
    """Measure, write the result, print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the comparison with peers")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each load")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of every answer of the stub")
    words = "of the gateway: all are compared with the peers, the first is measured by stage"
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help=words)
    parser.add_argument("--out", type=Path, default=OUT, help=f"the result, as JSON; default: {OUT}")
    options = parser.parse_args()
    quiet_logs()
    found = measure(options)
    print(tables.render(found))


if __name__ == "__main__":
    main()
