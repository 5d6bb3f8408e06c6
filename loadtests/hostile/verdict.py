"""What came of the cases, and whether all that must hold held."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from loadtests.hostile.case import MARKS, Answer, Case
from loadtests.hostile.catalogue import GROUPS

PEAK_MB = 1024.0
"""Far more than any one request may cost, far less than a bomb."""
GROWTH_SHARE, GROWTH_MB = 0.05, 16.0
"""How much more memory there may be after the cases were tried once more."""


@dataclass(frozen=True, slots=True)
class Row:
    """One case and what came of it; ``failures`` is empty where that is acceptable.

    ``blame`` is whose fault the answer says it is. ``upstream``: an error that we report for the backend, with its
    code; a 5xx of this kind is no 5xx of ours.
    """

    id: str
    group: str
    tried: str
    allowed: list[str]
    outcome: str
    code: str | None
    blame: str
    seconds: float
    memory_mb: float
    peak_mb: float
    failures: list[str]

    def as_json(self) -> dict[str, object]:
        """The line for the results file."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ending:
    """How the gateway was after all cases. ``memory_mb``: after each time that all were tried."""

    same_process: bool
    log: str
    metrics: str
    canary_visits: int
    memory_mb: Sequence[float]
    peak_mb: float


def judge(case: Case, answer: Answer, seconds: float, memory_mb: tuple[float, float], unwell: str = "") -> Row:
    """Hold one answer against what is acceptable; ``seconds`` are beyond those of an ordinary draw."""
    failures = [f"the gateway is not well: {unwell}"] if unwell else []
    if answer.outcome not in case.allowed:
        failures.append(f"{answer.outcome} is not acceptable")
    if seconds > case.within_s:
        failures.append(f"answered after {seconds:.1f} s, not within {case.within_s:g}")
    if answer.blame == "ours":
        failures.append("a 5xx of ours")
    failures += [f"the error tells {mark}" for mark in leaked(answer.error)]
    return Row(
        id=case.id,
        group=case.group,
        tried=case.tried,
        allowed=sorted(case.allowed),
        outcome=answer.outcome,
        code=answer.code,
        blame=answer.blame,
        seconds=round(seconds, 3),
        memory_mb=round(memory_mb[0], 1),
        peak_mb=round(memory_mb[1], 1),
        failures=failures,
    )


def leaked(text: bytes | str) -> list[str]:
    """What was planted and is found in it."""
    content = text.encode() if isinstance(text, str) else text
    return [mark for mark in MARKS if mark.encode() in content]


def checks(ending: Ending) -> dict[str, str]:
    """What must hold in the end: a complaint for each that does not, and nothing for each that does."""
    first, last = ending.memory_mb[0], ending.memory_mb[-1]
    defects = re.search(r'ratchet_errors_total\{kind="defect"\} [1-9]', ending.metrics)
    grown = last > first * (1 + GROWTH_SHARE) + GROWTH_MB
    return {
        "the same process runs": "" if ending.same_process else "it was started anew, or has ended",
        "no traceback in its log": "a traceback" if "Traceback (most recent call last)" in ending.log else "",
        "no defect in its metrics": "a defect" if defects else "",
        "no prompt, key or answer in its log": ", ".join(leaked(ending.log)),
        "nor in its metrics": ", ".join(leaked(ending.metrics)),
        "no connection to the canary": f"{ending.canary_visits} connections" if ending.canary_visits else "",
        "every permit is free": "" if gauge(ending.metrics, "candidates_in_flight") == 0 else "some are not",
        "every record has reached Redis": "" if gauge(ending.metrics, "journal_lag_records") == 0 else "some have not",
        "memory does not grow": f"from {first:.0f} to {last:.0f} MB" if grown else "",
        "no case costs a gigabyte": f"{ending.peak_mb:.0f} MB" if ending.peak_mb > PEAK_MB else "",
    }


def by_group(rows: Sequence[Row]) -> list[tuple[str, int, str, int]]:
    """A line for each group: what it is, how many cases, their outcomes, how many failed."""
    return [
        (title, len(ours), _counted(ours), sum(bool(row.failures) for row in ours))
        for group, title in GROUPS.items()
        if (ours := [row for row in rows if row.group == group])
    ]


def _counted(rows: Sequence[Row]) -> str:
    """Outcomes by how often they came; an error of the backend's is marked as that."""
    outcomes = Counter(
        _brief(row.outcome) + (" upstream" if row.blame == "upstream" and "error event" not in row.outcome else "")
        for row in rows
    )
    return ", ".join(f"{outcome} × {count}" for outcome, count in outcomes.most_common())


def _brief(outcome: str) -> str:
    statuses, _, word = outcome.partition(" ")
    return f"{statuses} {word}" if word not in {"", "single", "scored"} else statuses


def gauge(metrics: str, name: str) -> float | None:
    """A gauge's value in what ``/metrics`` says."""
    found = re.search(rf"^ratchet_{name} ([0-9.]+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else None
