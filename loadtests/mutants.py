"""Change the code by machine many times, and count how often the tests notice.

    python -m loadtests.mutants --sample 1500 --seed 1 --out loadtests/results/mutants.json

mutmut makes the mutants (a bound, a sign, a constant, a left-out argument) of the rooms where thresholds and money
are: ``[tool.mutmut]`` in pyproject.toml names them. All of them would take hours on two cores, so a random sample is
run; the interval is Wilson's for the whole. Survivors are listed by name: ``mutmut show NAME`` prints the change.

A mutant counts as killed only when a test fails. Not killed are mutants whose tests run into their time limit (a slow
machine looks the same), mutants that no test reaches in its own process, and mutants that mypy alone would refuse:
checking the mutated tree takes minutes. ``loadtests.mutant_tests`` selects the tests. Texts are not changed: lines that
log, that raise with a message, and help texts and descriptions are left out as a whole.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from distill.reward_training.accuracy import wilson
from loadtests.stack import machine
from loadtests.tables import render, write_result

FOLDER = Path("mutants")
KILLED = "killed"
STATUS = {
    0: "survived",
    1: "killed",
    3: "killed",
    5: "no tests",
    33: "no tests",
    34: "skipped",
    24: "timeout",
    -24: "timeout",
    36: "timeout",
    152: "timeout",
    255: "timeout",
}
_NO_MUTANT = "mutmut makes all mutants before it looks for this name"


def main() -> None:
    """Make the mutants, run the tests against a sample of them, and write what survived."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--sample", type=int, default=1500, help="mutants to run, over all rooms")
    parser.add_argument("--seed", type=int, default=1, help="draws the sample")
    parser.add_argument("--only", default="", help="only mutants whose name begins so: gateway.api.limits")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 2, help="test processes at once")
    parser.add_argument("--out", type=Path, default=Path("loadtests/results/mutants.json"))
    options = parser.parse_args()
    _mutmut("run", _NO_MUTANT, children=1)
    names = sorted(name for name in verdicts() if name.startswith(options.only))
    sample = random.Random(options.seed).sample(names, min(options.sample, len(names)))
    _mutmut("run", *sample, children=options.children)
    found = verdicts()
    if unknown := sum(found[name] is None for name in sample):
        raise SystemExit(f"mutmut did not run {unknown} of {len(sample)} mutants: see its output above")
    about = {**machine(), "seed": str(options.seed)}
    result = {"about": about, **summary({name: found[name] for name in sample}, len(names))}
    write_result(options.out, result)
    print(render(result))
    print(f"survivors in {options.out}")


def verdicts() -> dict[str, str | None]:
    """Return the status of each mutant so far; None: not run."""
    found: dict[str, str | None] = {}
    for meta in FOLDER.rglob("*.py.meta"):
        codes: dict[str, int | None] = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
        found |= {name: None if code is None else STATUS.get(code, f"exit {code}") for name, code in codes.items()}
    return found


def summary(sampled: dict[str, str | None], made: int) -> dict[str, Any]:
    """Return the shares killed by room and in all, and the survivors.

    Args:
        sampled: The status of each mutant of the sample; None: not run.
        made: Number of all mutants.
    """
    by_room: dict[str, Counter[str]] = {}
    for name, status in sampled.items():
        by_room.setdefault(".".join(name.split(".")[:2]), Counter())[status or "not run"] += 1
    survivors = sorted(name for name, status in sampled.items() if status != KILLED)
    rooms = [{"room": room, **_counted(counts)} for room, counts in sorted(by_room.items())]
    whole = _counted(sum(by_room.values(), Counter[str]()))
    noticed = wilson(whole["killed"], whole["run"])
    total = {**whole, "low": noticed.low, "high": noticed.high, "made": made}
    return {"total": total, "rooms": rooms, "survivors": survivors}


def _counted(counts: Counter[str]) -> dict[str, Any]:
    run, killed = counts.total(), counts[KILLED]
    return {"run": run, "killed": killed, "share": killed / run, "by": dict(counts)}


def _mutmut(*arguments: str, children: int) -> None:
    # mutmut ends with an error if no mutant has the given name, and if one survived.
    command = [sys.executable, "-m", "mutmut", arguments[0], "--max-children", str(children), *arguments[1:]]
    # One thread: torch's other threads do not survive the fork in which mutmut runs the tests; the tests would hang.
    more = {"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": "-p loadtests.mutant_tests"}
    subprocess.run(command, check=False, env={**os.environ, **more})


if __name__ == "__main__":
    main()
