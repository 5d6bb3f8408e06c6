"""The verdict on one scenario: what clients saw, which records are lost, and what did not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from loadtests.faults.callers import Seen, counts, normal_after_s
from loadtests.faults.scenarios import Scenario

NORMAL_WITHIN_S = 30.0
"""Longest time until all is normal again; it includes a start of the gateway on a busy machine."""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one run of a scenario.

    Attributes:
        seen: Every request, as its client saw it.
        since_s: End of the fault (its beginning, if it does not heal), on the clients' clock.
        struck_s: Beginning of the fault.
        acknowledged: Number of records whose answers clients got whole.
        lost: Number of those that are nowhere.
        wiped: Number of those that Redis had, and lost with all its data.
        duplicates: Number of stream entries whose id was there before.
        arrived_after_s: Seconds until Redis had all records acknowledged under the fault; None: never.
        readiness: The gateway's readiness under the fault.
        readiness_after: The gateway's readiness at the end.
        as_planned: The fault struck, and processes ended, as planned.
    """

    seen: Sequence[Seen]
    since_s: float
    struck_s: float
    acknowledged: int
    lost: int
    wiped: int
    duplicates: int
    arrived_after_s: float | None
    readiness: str
    readiness_after: str
    as_planned: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``failures`` is empty if all held."""

    name: str
    must_hold: str
    requests: int
    outcomes: dict[str, int]
    slowest_s: float
    acknowledged: int
    lost: int
    wiped: int
    duplicates: int
    normal_after_s: float | None
    arrived_after_s: float | None
    readiness: str
    failures: list[str]

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def judge(scenario: Scenario, facts: Facts) -> Row:
    """Compare the facts with what must hold."""
    outcomes = counts(facts.seen)
    normal_s = normal_after_s(facts.seen, facts.since_s, scenario.normal)
    answered = sum(one.answered for one in facts.seen)
    under_fault = [one for one in facts.seen if one.ended_s >= facts.struck_s]
    failures = []
    if facts.lost:
        failures.append(f"{facts.lost} acknowledged records are lost")
    if unexpected := {name: n for name, n in outcomes.items() if name not in scenario.allowed | scenario.normal}:
        failures.append(f"clients saw {unexpected}")
    if not under_fault or not any(one.ended_s < facts.struck_s for one in facts.seen):
        failures.append("there was no traffic before or under the fault: nothing was tested")
    if scenario.readiness and facts.readiness != scenario.readiness:
        failures.append(f"readiness was {facts.readiness!r} under the fault, not {scenario.readiness!r}")
    if answered < scenario.least_answered * len(facts.seen):
        failures.append(f"only {answered} of {len(facts.seen)} requests were answered")
    before_s = _p95([one.seconds for one in facts.seen if one.ended_s < facts.struck_s])
    during_s = _p95([one.seconds for one in facts.seen if facts.struck_s <= one.started_s < facts.since_s])
    if during_s > scenario.most_slowdown * before_s:
        failures.append(f"p95 was {during_s:.2f} s under the fault, {before_s:.2f} s before it")
    given_n = Counter(one.n for one in facts.seen if one.n is not None and one.started_s >= facts.struck_s)
    if scenario.even and not _are_two_neighbours(given_n):
        failures.append(f"N was not even: {dict(sorted(given_n.items()))}")
    in_fault = [one.n for one in facts.seen if one.n is not None and facts.struck_s <= one.started_s < facts.since_s]
    if sum(in_fault) > scenario.most_draws * len(in_fault):
        failures.append(f"{sum(in_fault)} draws for {len(in_fault)} requests under the fault")
    slowest_s = max((one.seconds for one in under_fault), default=0.0)
    if slowest_s > scenario.slowest_s:
        failures.append(f"a request took {slowest_s:.1f} s, longer than {scenario.slowest_s:g} s")
    if normal_s is None or normal_s > NORMAL_WITHIN_S:
        failures.append("clients were not served normally again")
    if facts.arrived_after_s is None:
        failures.append("Redis did not get all records acknowledged under the fault")
    if facts.readiness_after != "ready":
        failures.append(f"in the end readiness is {facts.readiness_after!r}")
    if not facts.as_planned:
        failures.append("the fault did not strike, or a process did not end, as planned")
    return Row(
        name=scenario.name,
        must_hold=scenario.must_hold,
        requests=len(facts.seen),
        outcomes=outcomes,
        slowest_s=slowest_s,
        acknowledged=facts.acknowledged,
        lost=facts.lost,
        wiped=facts.wiped,
        duplicates=facts.duplicates,
        normal_after_s=normal_s,
        arrived_after_s=facts.arrived_after_s,
        readiness=facts.readiness,
        failures=failures,
    )


def _p95(seconds: Sequence[float]) -> float:
    """Return the time within which 95 % of the requests were answered; 0 if there were none."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))] if ordered else 0.0


def _are_two_neighbours(given_n: Counter[int]) -> bool:
    """Return whether races had one value of N, or two values next to each other."""
    return bool(given_n) and max(given_n) - min(given_n) <= 1
