"""Break every part under load and count the lost records: ``python -m loadtests.faults``, ``make faults``.

Each scenario has a fresh stack of real processes (the gateway, Valkey with an append-only file, stubs of TGI and of a
reward server) and clients that send requests without a pause, one in four streamed. After a few calm seconds a fault
strikes, heals, and the load continues for a while. Every completion that a client got whole is looked for in Redis by
its id. The exit code is 0 only if none is missing and everything that must hold held.

One exception is counted apart: if Redis loses its data, records that it had acknowledged to the gateway are lost with
it (``wiped``). If the night collects, records are looked for in its archive. Client, stubs, Redis and gateway share the
machine. libfaketime is needed to fake clocks (``make faults`` installs it): a scenario that cannot run is a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from rich.console import Console

from loadtests import tables
from loadtests.faults.fault_stack import SETTINGS, FaultStack
from loadtests.faults.scenarios import SCENARIOS, Scenario
from loadtests.faults.verdict import NORMAL_WITHIN_S, Facts, judge
from loadtests.stack import machine, quiet_logs

OUT = Path("loadtests/results/faults.json")
_AFTER_READY_S = 1.0  # of traffic, whose answers show that all is normal again
_POLL_S = 0.2

console = Console(width=200)


async def observe(scenario: Scenario, options: argparse.Namespace) -> Facts:
    """Run one scenario."""
    stack = FaultStack(
        callers=scenario.callers or options.callers,
        n=options.n,
        fault_s=options.fault_s,
        pause_s=options.pause_s,
        replicas=scenario.replicas,
        backend=scenario.backend,
        proxied=scenario.proxied,
        faked_clock=scenario.faked_clock,
        settings=scenario.settings,
        knobs=scenario.knobs,
    )
    async with stack:
        async with stack.callers:
            await asyncio.sleep(options.calm_s)
            struck_s = time.monotonic()
            await scenario.strike(stack)
            healed_s = time.monotonic()
            since_s = healed_s if scenario.heals else struck_s
            under_fault = stack.callers.acknowledged()
            arriving = asyncio.create_task(_arrival(stack, under_fault, archived=scenario.archived))
            await asyncio.sleep(options.calm_s)
            readiness_after = "ready" if scenario.stays_broken else await _until_ready(stack)
            await asyncio.sleep(_AFTER_READY_S)
            _, waited_s = await arriving
        acknowledged = stack.callers.acknowledged()
        lost, _ = await _arrival(stack, acknowledged, archived=scenario.archived)
        if scenario.archived:  # under traffic a small stream is full again soon after a night has collected it
            readiness_after = await _until_ready(stack)
        return Facts(
            seen=stack.callers.seen,
            since_s=since_s,
            struck_s=struck_s,
            acknowledged=len(acknowledged),
            lost=len(lost),
            wiped=len((acknowledged & stack.records.wiped) - stack.records.present),
            duplicates=stack.records.duplicates,
            arrived_after_s=None if waited_s is None else waited_s + healed_s - since_s,
            readiness=stack.readiness,
            readiness_after=readiness_after,
            as_planned=stack.as_planned,
        )


async def _arrival(stack: FaultStack, wanted: set[str], *, archived: bool) -> tuple[set[str], float | None]:
    """Wait until the stream, or the archive, has these records; return the missing ones, and the seconds it took."""
    if not archived:
        waited_s = await stack.records.wait_for(wanted, NORMAL_WITHIN_S)
        return stack.records.missing(wanted), waited_s
    started_s = time.monotonic()
    missing = await stack.archive_all(wanted)
    return missing, None if missing else time.monotonic() - started_s


async def _until_ready(stack: FaultStack) -> str:
    """Wait until readiness is "ready", or too long; return the last status."""
    deadline = time.monotonic() + NORMAL_WITHIN_S
    while True:
        status = await stack.gateway.readiness()
        if status == "ready" or time.monotonic() > deadline:
            return status
        await asyncio.sleep(_POLL_S)


async def main() -> int:
    """Run the chosen scenarios, print and write the result; return 0 only if all held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--callers", type=int, default=8, help="requests in flight")
    parser.add_argument("--n", type=int, default=4, help="N of every request")
    parser.add_argument("--calm-s", type=float, default=4.0, help="length of the load before the fault, and after it")
    parser.add_argument("--fault-s", type=float, default=6.0, help="how long a fault lasts")
    parser.add_argument("--pause-s", type=float, default=30.0, help="how long Redis freezes in redis-paused")
    parser.add_argument("--out", type=Path, default=OUT, help="write the result here as JSON")
    options = parser.parse_args()
    quiet_logs()
    rows, left_out = [], []
    for scenario in SCENARIOS:
        if scenario.name not in options.only:
            continue
        if not scenario.possible:
            left_out.append(scenario.name)
            continue
        console.print(f"{scenario.name}: {scenario.must_hold}")
        rows.append(judge(scenario, await observe(scenario, options)))
        for failure in rows[-1].failures:
            console.print(f"  {failure}", style="red")
    load = {name: getattr(options, name) for name in ("callers", "n", "calm_s", "fault_s", "pause_s")}
    about = {"about": machine(), "load": load, "settings": SETTINGS, "not_run": left_out}
    result = {**about, "faults": [row.as_json() for row in rows]}
    tables.write_result(options.out, result)
    print(tables.render(result))
    for name in left_out:
        console.print(f"{name} was not run: libfaketime is missing (make faults installs it)", style="red")
    return int(any(row.failures for row in rows) or not rows or bool(left_out))


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
