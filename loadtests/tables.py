"""Tables in Markdown, made from the JSON that the measurements write.

    python -m loadtests.tables loadtests/README.md loadtests/results/bench.json …

Each result holds the facts of one or several tables. The page has a place for each: two comments with its name.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Column = tuple[str, str, str]
"""Heading, field, format."""

_OVERHEAD: Sequence[Column] = (
    ("concurrency", "concurrency", "d"),
    ("N", "n", "d"),
    ("stub, N side by side", "stub_p50_ms", ".1f"),
    ("gateway p50", "p50_ms", ".1f"),
    ("p99", "p99_ms", ".1f"),
    ("**added**", "added_ms", ".1f"),
    ("draws", "draws_ms", ".1f"),
    ("rewards", "rewards_ms", ".1f"),
    ("journal", "journal_ms", ".1f"),
    ("own", "own_ms", ".1f"),
    ("HTTP", "http_ms", ".1f"),
    ("requests/s", "requests_per_s", ".0f"),
    ("CPU", "cpu_ms", ".1f"),
)
_PEERS: Sequence[Column] = (
    ("concurrency", "concurrency", "d"),
    ("who", "who", ""),
    ("waits for the model", "waits", "d"),
    ("p50", "p50_ms", ".1f"),
    ("p99", "p99_ms", ".1f"),
    ("added to the slowest candidate", "added_ms", ".1f"),
    ("beyond its waits", "beyond_waits_ms", ".1f"),
    ("requests/s", "requests_per_s", ".0f"),
    ("least to most", "range_per_s", ""),
    ("CPU a request", "cpu_ms", ".1f"),
)
_REWARDS: Sequence[Column] = (
    ("races at once", "races", "d"),
    ("pairs/s", "pairs_per_s", ".1f"),
    ("pairs a batch", "pairs_per_batch", ".1f"),
    ("padding", "padding", ".1%"),
    ("wait p50", "wait_p50_ms", ".1f"),
    ("wait p95", "wait_p95_ms", ".1f"),
    ("a race's rewards, p50", "race_p50_ms", ".1f"),
)
_JOURNAL: Sequence[Column] = (
    ("durability", "durability", ""),
    ("writers", "writers", "d"),
    ("records/s", "records_per_s", ".0f"),
    ("p50", "p50_ms", ".2f"),
    ("p99", "p99_ms", ".2f"),
    ("records a commit", "records_per_commit", ".1f"),
)
_FAULTS: Sequence[Column] = (
    ("what was done, and what must hold", "must_hold", ""),
    ("clients saw", "saw", ""),
    ("slowest", "slowest", ""),
    ("acknowledged", "acknowledged", "d"),
    ("**lost**", "lost", "d"),
    ("wiped", "wiped", "d"),
    ("clients normal after", "normal", ""),
    ("Redis has all after", "arrived", ""),
)
_LOAD: Sequence[Column] = (
    ("loop", "loop", ""),
    ("request", "name", ""),
    ("requests", "requests", "d"),
    ("failed", "failed", "d"),
    ("p50 ms", "p50_ms", ".0f"),
    ("p95", "p95_ms", ".0f"),
    ("p99", "p99_ms", ".0f"),
    ("slowest", "slowest_ms", ".0f"),
)
_HOSTILE: Sequence[Column] = (("group", "group", ""), ("cases", "cases", "d"), ("outcomes", "outcomes", ""))
_STARTS: Sequence[Column] = (
    ("reward source", "kind", ""),
    ("starts", "count", "d"),
    ("ready and scored", "good", "d"),
    ("median s", "median_s", ".1f"),
)
_MUTANTS: Sequence[Column] = (
    ("room", "room", ""),
    ("mutants run", "run", "d"),
    ("noticed", "killed", "d"),
    ("share", "share", ".0%"),
)
_SOAK: Sequence[Column] = (
    ("what may not grow", "quantity", ""),
    ("first third, median", "before", ".1f"),
    ("last third", "after", ".1f"),
    ("grows", "grows", ""),
)
SOAKED = {
    "memory_mb": "memory, MB",
    "descriptors": "file descriptors",
    "tasks": "tasks of the event loop",
    "hub_entries": "left on the hub's client by streamed calls",
    "spool_records": "records that wait for Redis",
}
_GROWTH = (
    ("with", "name"),
    ("at", "at"),
    ("added, ms", "added"),
    ("gateway CPU a request, ms", "cpu"),
    ("requests/s", "rate"),
)


def table(columns: Sequence[Column], rows: Iterable[Row]) -> str:
    """Render a table in Markdown."""
    lines = [[heading for heading, _, _ in columns], ["---"] * len(columns)]
    lines += [[format(row[name], form) for _, name, form in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def titled(about: Mapping[str, Any], *tables: str) -> str:
    """Put a line with date and machine above tables. Only string values of ``about`` are shown."""
    line = ", ".join(f"{name} {value}" for name, value in about.items() if isinstance(value, str))
    return "\n\n".join([line, *tables])


def overhead(rows: Iterable[Row]) -> str:
    """Render the latency that the gateway adds, by stage."""
    return table(_OVERHEAD, rows)


def peers(rows: Iterable[Row]) -> str:
    """Render this gateway beside others."""
    return table(
        _PEERS, ({**row, "range_per_s": f"{row['least_per_s']:.0f} to {row['most_per_s']:.0f}"} for row in rows)
    )


def rewards(found: Iterable[Row]) -> str:
    """Render a table for each device and type."""
    return "\n\n".join(
        f"{one['model']} on {one['device']}, {one['dtype']}; eight answers to a 1,000-token prompt"
        f"{' (clipped to what it reads)' if one['long_prompt_clipped'] else ''}: {one['long_prompt_ms']:.0f} ms\n\n"
        + table(_REWARDS, one["loads"])
        for one in found
    )


def journal(found: Row) -> str:
    """Render the journal's throughput and latency."""
    return f"Encoding a record: {found['encode_ms']:.3f} ms\n\n" + table(_JOURNAL, found["rows"])


def growth(rows: Sequence[Row]) -> str:
    """Render a line for each quantity that was varied, its points in order."""
    lines = []
    for name in dict.fromkeys(row["sweep"] for row in rows):
        points = [row for row in rows if row["sweep"] == name]
        series = [
            (f"{p['at']:,}", f"{p['added_ms']:.1f}", f"{p['cpu_ms']:.1f}", f"{p['requests_per_s']:.0f}") for p in points
        ]
        at, added, cpu, rate = (" · ".join(cells) for cells in zip(*series, strict=True))
        lines.append({"name": name, "at": f"{at} {points[0]['unit']}", "added": added, "cpu": cpu, "rate": rate})
    columns = [(heading, field, "") for heading, field in _GROWTH]
    return table(columns, lines)


def faults(rows: Sequence[Row]) -> str:
    """Render the totals, and a line for each fault."""
    acknowledged, lost = (sum(row[name] for row in rows) for name in ("acknowledged", "lost"))
    lines = [
        {
            **row,
            "saw": ", ".join(f"{count} {name}" for name, count in row["outcomes"].items()),
            "slowest": seconds(row["slowest_s"]),
            "normal": seconds(row["normal_after_s"]),
            "arrived": seconds(row["arrived_after_s"]),
        }
        for row in rows
    ]
    return f"{acknowledged:,} answers were acknowledged, {lost:,} of them are lost.\n\n{table(_FAULTS, lines)}"


def load(phases: Iterable[Row]) -> str:
    """Render a line for each kind of request, in the closed loop and in the open one."""
    return table(_LOAD, ({**line, "loop": phase["shape"]} for phase in phases for line in phase["lines"]))


def hostile(found: Row) -> str:
    """Render the totals, the gateway's memory on each kind of backend, and a line for each group of cases."""
    cases: Sequence[Row] = found["cases"]
    failed = sum(map(bool, (*(case["failures"] for case in cases), *found["held"].values())))
    totals = [f"{len(cases):,} cases; {failed} cases or checks failed."]
    for kind, memory_mb in found["memory_mb"].items():
        rounds = ", ".join(f"{each:.0f}" for each in memory_mb)
        totals.append(f"Memory on {kind} after each round: {rounds} MB, at most {found['peak_mb'][kind]:.0f}.")
    lines = []
    for group, title in found["groups"].items():
        outcomes = Counter(_outcome(case) for case in cases if case["group"] == group)
        words = ", ".join(f"{outcome} × {count}" for outcome, count in outcomes.most_common())
        if outcomes:
            lines.append({"group": title, "cases": outcomes.total(), "outcomes": words})
    return f"{' '.join(totals)}\n\n{table(_HOSTILE, lines)}"


def _outcome(case: Row) -> str:
    """Return a case's outcome; an error that is reported for the backend is marked."""
    is_upstream = case["blame"] == "upstream" and "error event" not in case["outcome"]
    return f"{case['outcome']} upstream" if is_upstream else str(case["outcome"])


def starts(rows: Iterable[Row]) -> str:
    """Render a line for each source of rewards."""
    return table(_STARTS, rows)


def mutants(found: Row) -> str:
    """Render the share of mutants that the tests noticed, and a line for each room."""
    total = found["total"]
    sentence = (
        f"{total['killed']} of {total['run']} mutants, out of {total['made']:,}, made a test fail: "
        f"{total['share']:.0%} [{total['low']:.0%}, {total['high']:.0%}]."
    )
    return f"{sentence}\n\n{table(_MUTANTS, found['rooms'])}"


def soak(found: Row) -> str:
    """Render the load and its outcomes, the failures, and a line for each quantity that was watched."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in found["outcomes"].items())
    about = found["about"]
    parts = [
        f"{about['minutes']:g} minutes at {about['rate_per_s']:.1f} requests/s (this machine's capacity: "
        f"{about['capacity_per_s']:.1f}): {outcomes}; p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms; "
        f"{found['acknowledged']:,} acknowledged, {found['missing']:,} of them missing in Redis."
    ]
    if found["failures"]:
        parts.append(f"**Failed:** {'; '.join(found['failures'])}.")
    lines = [
        {**one, "quantity": SOAKED[name], "grows": "**yes**" if one["grows"] else "no"}
        for name, one in found["growth"].items()
    ]
    return "\n\n".join([*parts, table(_SOAK, lines)])


def seconds(value: float | None) -> str:
    """Render a duration; None is ``never``."""
    return "never" if value is None else f"{value:.1f} s"


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Render a table for each part that a run has measured, by the name of its place on the page."""
    parts: Mapping[str, tuple[str, Callable[[Any], str]]] = {
        "bench overhead": ("overhead", overhead),
        "bench peers": ("peers", peers),
        "bench reward": ("reward", rewards),
        "bench journal": ("journal", journal),
        "cost": ("cost", growth),
        "load": ("phases", load),
        "faults": ("faults", faults),
        "hostile": ("cases", lambda _: hostile(found)),
        "starts": ("starts", starts),
        "mutants": ("survivors", lambda _: mutants(found)),
        "soak": ("growth", lambda _: soak(found)),
    }
    return {place: render(found[name]) for place, (name, render) in parts.items() if name in found}


def render(found: Mapping[str, Any]) -> str:
    """Render all tables of a result, under its date and machine."""
    return titled(found["about"], *blocks(found).values())


def write_result(out: Path, found: Mapping[str, Any]) -> None:
    """Write a result as JSON; its folder is made if it is missing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def put(page: Path, about: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Write each table, under its date and machine, between the two comments of its name on a page.

    Raises:
        ValueError: The page has no place of that name.
    """
    for name, rendered in named.items():
        fill(page, name, titled(about, rendered))


def fill(page: Path, name: str, content: str) -> None:
    """Replace the text between the two comments ``<!-- name -->`` of a page.

    Raises:
        ValueError: The page does not hold exactly two of them.
    """
    text, mark = page.read_text(encoding="utf-8"), f"<!-- {name} -->"
    if text.count(mark) != 2:
        raise ValueError(f"{page} has no place for {name}: it needs two lines {mark}")
    before, _, after = text.split(mark)
    page.write_text(f"{before}{mark}\n{content}\n{mark}{after}", encoding="utf-8")


def main() -> None:
    """Write the tables of results to their places on a page."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page", type=Path, help="loadtests/README.md")
    parser.add_argument("results", type=Path, nargs="+", help="JSON that a measurement wrote")
    options = parser.parse_args()
    for file in options.results:
        found = json.loads(file.read_text(encoding="utf-8"))
        put(options.page, found["about"], blocks(found))


if __name__ == "__main__":
    main()
