"""Say to the gateway whatever a stranger, a broken server or a garbled Redis may say: ``python -m loadtests.hostile``.

The gateway, Valkey and the stubs are processes of their own; impostors stand in front of all that the gateway talks to.
After each case a good request must get every permit and a scored answer; after what Redis said, the gateway must still
follow the policy and ship its records. All cases are tried twice, for the first time fills caches: memory may not grow
the second time. In prompts, keys and answers there are words that nobody may find again in a log, a metric or an
error; names and redirects lead to a port where nobody may ever knock. Exit code 0 only if all of that holds.

A 502 or 504 (or a 429) whose code names the backend is what a caller must be told when the backend is at fault: it
counts as ``upstream``, and as no 5xx of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from loadtests.hostile.case import Answer, Case, Kind
from loadtests.hostile.catalogue import GROUPS, catalogue
from loadtests.hostile.verdict import Ending, Row, by_group, checks, judge
from loadtests.hostile.world import SETTINGS, Canary, NotWell, World
from loadtests.stack import machine

OUT = Path("loadtests/results/hostile.json")
ROUNDS = 2
KINDS: tuple[Kind, ...] = ("tgi", "vllm", "llamacpp")

console = Console(width=160)


async def run(pick: str, rounds: int) -> tuple[list[Row], dict[Kind, Ending]]:
    """Try every case whose id holds ``pick``, so many times: the rows of the last time, and every failed one.

    Each kind of backend has a world of its own, and an ending.
    """
    rows: list[Row] = []
    endings: dict[Kind, Ending] = {}
    async with Canary() as canary:
        for kind in KINDS:
            cases = [case for case in catalogue(canary.port) if pick in case.id and case.kind == kind]
            if cases:
                found, endings[kind] = await run_on(kind, canary, cases, rounds)
                rows += found
    return rows, endings


async def run_on(kind: Kind, canary: Canary, cases: Sequence[Case], rounds: int) -> tuple[list[Row], Ending]:
    """Try the cases of one kind of backend."""
    async with World(canary, kind) as world:
        pid, memory_mb = world.gateway.pid, []
        failed: list[Row] = []
        for number in range(1, rounds + 1):
            rows = []
            for case in cases:
                rows.append(await attempt(world, case))
                for failure in rows[-1].failures:
                    console.print(f"{case.id}: {failure}", style="red", markup=False)
            await world.rest()
            memory_mb.append(world.memory_mb()[0])
            console.print(f"{kind}, round {number}: {len(rows)} cases, then {memory_mb[-1]:.0f} MB")
            failed += [row for row in rows if row.failures and number < rounds]
        metrics = await world.text("/metrics")
        ending = Ending(
            same_process=world.gateway.pid == pid and world.gateway.alive,
            log=world.log,
            metrics=metrics + await world.text("/health/ready"),
            canary_visits=canary.visits,
            memory_mb=memory_mb,
            peak_mb=world.memory_mb()[1],
        )
        return [*rows, *failed], ending


async def attempt(world: World, case: Case) -> Row:
    """Try one case, and see whether the gateway is well after it."""
    usual_s, started, unwell, answer = world.usual_s, time.perf_counter(), "", Answer(b"", False)
    try:
        answer = await world.attempt(case)
    except NotWell as error:
        unwell = str(error)
    seconds = max(0.0, time.perf_counter() - started - usual_s)
    try:
        await world.well(thoroughly=case.in_redis)
    except NotWell as error:
        unwell = str(error)
    return judge(case, answer, seconds, world.memory_mb(), unwell)


def show(rows: Sequence[Row], held: dict[str, str], about: dict[str, str]) -> None:
    """The table by group, and what held in the end."""
    table = Table(
        "group", "cases", "outcomes", "failed", title=", ".join(f"{name} {value}" for name, value in about.items())
    )
    for title, count, outcomes, failed in by_group(rows):
        table.add_row(title, str(count), outcomes, str(failed))
    table.add_row("all", str(len(rows)), "", str(sum(bool(row.failures) for row in rows)))
    console.print(table)
    for what, complaint in held.items():
        console.print(f"{'NO' if complaint else 'yes'}: {what}{complaint and f' ({complaint})'}", markup=False)


async def main() -> int:
    """Try everything, judge, tell; 0 only if all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose id holds this")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often all are tried")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    rows, endings = await run(options.only, options.rounds)
    about = machine()
    held = {f"{kind}: {what}": told for kind, ending in endings.items() for what, told in checks(ending).items()}
    show(rows, held, about)
    told = {"about": about, "settings": SETTINGS, "rounds": options.rounds, "groups": GROUPS, "held": held}
    memory = {
        "memory_mb": {kind: list(ending.memory_mb) for kind, ending in endings.items()},
        "peak_mb": {kind: ending.peak_mb for kind, ending in endings.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**told, **memory, "cases": [row.as_json() for row in rows]}, indent=1) + "\n")
    return int(any(row.failures for row in rows) or any(held.values()) or not rows)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
