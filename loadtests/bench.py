"""``make bench``: what the gateway adds, and beside whom.

Four parts, each of which can be had alone (``--only``): the gateway's overhead by stage at several N and concurrencies;
other best-of-N gateways on the same stub in the same run, in rounds of which the middle counts; the reward batcher; the
journal. The result is JSON with the machine, the commit and the date in it, written after each part, and its tables are
printed as README has them (``python -m loadtests.tables`` puts them there).
"""

from __future__ import annotations

import argparse
import asyncio
import json
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
from loadtests.stack import Surroundings, gateway, machine, surroundings

OUT = Path("loadtests/results/bench.json")
PARTS = ("overhead", "peers", "reward", "journal")
PEERS: Sequence[Peer] = (tensorzero, its_hub, its_iaas, optillm)
PEERS_N = 4


async def side_by_side(
    around: Surroundings, workers: Sequence[int], concurrencies: Sequence[int], seconds: float
) -> AsyncIterator[Row]:
    """This gateway, then each peer, at N = 4; one that cannot be had is told of and left out."""
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
    """The parts that need a running gateway."""
    async with surroundings(latency_ms=options.latency_ms) as around:
        if "overhead" in options.only:
            async with gateway(around, workers=options.workers[0]) as running:
                rows = overhead.run(running, options.n, options.concurrency, options.seconds)
                found["overhead"] = [row async for row in told(rows)]
            keep(found, options.out)
        if "peers" in options.only:
            rounds: list[Row] = []
            for _ in range(options.rounds):
                rows = side_by_side(around, options.workers, options.concurrency, options.seconds)
                rounds += [row async for row in told(rows)]
            found["peers"] = middle(rounds)
            keep(found, options.out)


def middle(rounds: Sequence[Row]) -> list[Row]:
    """A row for each who and concurrency: the median of each number over the rounds, and the extremes of one.

    A shared machine is not as fast in every minute: who is measured in a slow one would look slow.
    """
    found: list[Row] = []
    for who, concurrency in dict.fromkeys((row["who"], row["concurrency"]) for row in rounds):
        same = [row for row in rounds if (row["who"], row["concurrency"]) == (who, concurrency)]
        numbers = {name: median(float(str(row[name])) for row in same) for name in same[0] if name != "who"}
        rates = [float(str(row["requests_per_s"])) for row in same]
        whole = {name: same[0][name] for name in ("who", "waits", "concurrency")}
        found.append({**numbers, **whole, "least_per_s": min(rates), "most_per_s": max(rates), "rounds": len(same)})
    return found


async def told(rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
    """The same rows; each is told of as it comes, for a run takes minutes."""
    async for row in rows:
        short = {name: round(value, 1) if isinstance(value, float) else value for name, value in row.items()}
        print(short, file=sys.stderr)
        yield row


def keep(found: dict[str, Any], out: Path) -> None:
    """Write what is known by now."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The chosen parts, one after the other."""
    about = {**machine(), "latency_ms": f"{options.latency_ms:g}", "workers": " and ".join(map(str, options.workers))}
    found: dict[str, Any] = {"about": about}
    if {"overhead", "peers"} & set(options.only):
        uvloop.run(on_stack(options, found))
    if "reward" in options.only:
        words = ["--devices", "cpu", "cuda", "--seconds", str(2 * options.seconds), "--repeats", "3"]
        found["reward"] = list(reward.run(reward.options_from(words)))
        keep(found, options.out)
    if "journal" in options.only:
        found["journal"] = asyncio.run(journal.run(options.seconds))
        keep(found, options.out)
    return found


def main() -> None:
    """Measure, keep, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts only")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=3, help="how often all are measured beside the peers")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each load")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of every answer of the stub")
    words = "of the gateway: all are measured beside the peers, the first by stage"
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help=words)
    parser.add_argument("--out", type=Path, default=OUT, help=f"the result, as JSON; default: {OUT}")
    options = parser.parse_args()
    found = measure(options)
    print(tables.titled(found["about"], *tables.blocks(found).values()))


if __name__ == "__main__":
    main()
