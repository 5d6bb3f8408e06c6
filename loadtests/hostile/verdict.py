"""The verdict on each case, and on the gateway after all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from loadtests.hostile.case import MARKS, Answer, Case

PEAK_MB = 1024.0
"""Far more than any request may take, far less than a decompressed bomb."""
GROWTH_SHARE, GROWTH_MB = 0.05, 16.0
"""Growth of memory that is allowed from the first round to the last."""


@dataclass(frozen=True, slots=True)
class Row:
    """One case and its outcome; ``failures`` is empty if that is acceptable.

    ``blame`` is the party at fault by the answer. ``upstream``: an error reported for the backend, with its code;
    such a 5xx is not one of ours.
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
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ending:
    """The gateway after all cases. ``memory_mb``: after each round."""

    same_process: bool
    log: str
    metrics: str
    canary_visits: int
    memory_mb: Sequence[float]
    peak_mb: float


def judge(case: Case, answer: Answer, seconds: float, memory_mb: tuple[float, float], unwell: str = "") -> Row:
    """Compare one answer with the acceptable outcomes; ``seconds`` are beyond those of an ordinary draw."""
    failures = [f"the gateway is not well: {unwell}"] if unwell else []
    if answer.outcome not in case.allowed:
        failures.append(f"{answer.outcome} is not acceptable")
    if seconds > case.within_s:
        failures.append(f"answered after {seconds:.1f} s, not within {case.within_s:g}")
    if answer.blame == "ours":
        failures.append("a 5xx of ours")
    failures += [f"the error contains {mark}" for mark in leaked(answer.error)]
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
    """Return the planted words that are found in a text."""
    content = text.encode() if isinstance(text, str) else text
    return [mark for mark in MARKS if mark.encode() in content]


def checks(ending: Ending) -> dict[str, str]:
    """Check the gateway at the end; return a complaint for each check, empty if it holds."""
    first, last = ending.memory_mb[0], ending.memory_mb[-1]
    defects = re.search(r'ratchet_errors_total\{kind="defect"\} [1-9]', ending.metrics)
    grown = last > first * (1 + GROWTH_SHARE) + GROWTH_MB
    return {
        "the same process runs": "" if ending.same_process else "it restarted, or has ended",
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


def gauge(metrics: str, name: str) -> float | None:
    """Return a gauge's value from the text of ``/metrics``."""
    found = re.search(rf"^ratchet_{name} ([0-9.]+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else None
