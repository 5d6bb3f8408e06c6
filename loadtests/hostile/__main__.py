"""Hostile input from callers, servers and Redis, on real processes: ``python -m loadtests.hostile``.

The gateway, Valkey and the stubs are processes of their own; impostors stand in front of everything that the gateway
calls. After each case a good request must get every permit and a scored answer; after hostile data in Redis the gateway
must still follow the policy and ship its records. All cases are tried twice, because the first round fills caches:
memory may not grow in the second. Prompts, keys and answers hold planted words, which may appear in no log, metric or
error; names and redirects lead to a port (the canary) that nothing may connect to. The exit code is 0 only if all of
this holds.

A 502 or 504 (or a 429) whose code names the backend is the right answer when the backend is at fault: it counts as
``upstream``, not as a 5xx of ours.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtests import tables
from loadtests.hostile.case import Answer, Case, Kind
from loadtests.hostile.catalogue import GROUPS, catalogue
from loadtests.hostile.hostile_stack import SETTINGS, Canary, HostileStack, NotWell
from loadtests.hostile.verdict import Ending, Row, checks, judge
from loadtests.stack import machine, quiet_logs

OUT = Path("loadtests/results/hostile.json")
ROUNDS = 2
KINDS: tuple[Kind, ...] = ("tgi", "vllm", "llamacpp")

console = Console(width=160)


async def run(pick: str, rounds: int) -> tuple[list[Row], dict[Kind, Ending]]:
    """Try each case whose id contains ``pick`` in every round; return the last round's rows, and all failed ones.

    Each kind of backend has a stack of its own, and an ending.
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
    async with HostileStack(canary, kind) as stack:
        pid, memory_mb = stack.gateway.pid, []
        failed: list[Row] = []
        for number in range(1, rounds + 1):
            rows = []
            for case in cases:
                rows.append(await attempt(stack, case))
                for failure in rows[-1].failures:
                    console.print(f"{case.id}: {failure}", style="red", markup=False)
            await stack.rest()
            memory_mb.append(stack.memory_mb()[0])
            console.print(f"{kind}, round {number}: {len(rows)} cases, then {memory_mb[-1]:.0f} MB")
            failed += [row for row in rows if row.failures and number < rounds]
        metrics = await stack.text("/metrics")
        ending = Ending(
            same_process=stack.gateway.pid == pid and stack.gateway.alive,
            log=stack.log,
            metrics=metrics + await stack.text("/health/ready"),
            canary_visits=canary.visits,
            memory_mb=memory_mb,
            peak_mb=stack.memory_mb()[1],
        )
        return [*rows, *failed], ending


async def attempt(stack: HostileStack, case: Case) -> Row:
    """Try one case, and check that the gateway is well after it."""
    usual_s, started, unwell, answer = stack.usual_s, time.perf_counter(), "", Answer(b"", False)
    try:
        answer = await stack.attempt(case)
    except NotWell as error:
        unwell = str(error)
    seconds = max(0.0, time.perf_counter() - started - usual_s)
    try:
        await stack.well(thoroughly=case.in_redis)
    except NotWell as error:
        unwell = str(error)
    return judge(case, answer, seconds, stack.memory_mb(), unwell)


async def main() -> int:
    """Try all cases, judge, print and write the result; return 0 only if all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose id contains this")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="number of rounds")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    quiet_logs(logging.ERROR)
    rows, endings = await run(options.only, options.rounds)
    held = {
        f"{kind}: {what}": complaint for kind, ending in endings.items() for what, complaint in checks(ending).items()
    }
    result: dict[str, Any] = {
        "about": machine(),
        "settings": SETTINGS,
        "rounds": options.rounds,
        "groups": GROUPS,
        "held": held,
        "memory_mb": {kind: list(ending.memory_mb) for kind, ending in endings.items()},
        "peak_mb": {kind: ending.peak_mb for kind, ending in endings.items()},
        "cases": [row.as_json() for row in rows],
    }
    tables.write_result(options.out, result)
    print(tables.render(result))
    for check, complaint in held.items():
        console.print(f"{'NO' if complaint else 'yes'}: {check}{complaint and f' ({complaint})'}", markup=False)
    return int(any(row.failures for row in rows) or any(held.values()) or not rows)


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
