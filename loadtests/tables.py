"""What the benchmarks found, as README has it: tables in Markdown, made from the JSON that they write.

    python -m loadtests.tables PAGE RESULT…

Each result brings the tables of what it measured; a page has a place for each.
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
    """A table in Markdown."""
    lines = [[heading for heading, _, _ in columns], ["---"] * len(columns)]
    lines += [[format(row[name], form) for _, name, form in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def titled(about: Mapping[str, Any], *tables: str) -> str:
    """Tables under the date and the machine (of what else is told there, what is a word)."""
    return "\n\n".join(
        [", ".join(f"{name} {value}" for name, value in about.items() if isinstance(value, str)), *tables]
    )


def overhead(rows: Iterable[Row]) -> str:
    """What the gateway adds, and in which stage."""
    return table(_OVERHEAD, rows)


def peers(rows: Iterable[Row]) -> str:
    """The gateway beside others."""
    return table(
        _PEERS, ({**row, "range_per_s": f"{row['least_per_s']:.0f} to {row['most_per_s']:.0f}"} for row in rows)
    )


def rewards(found: Iterable[Row]) -> str:
    """A table for each device and type."""
    return "\n\n".join(
        f"{one['model']} on {one['device']}, {one['dtype']}; eight answers to a 1,000-token prompt"
        f"{' (clipped to what it reads)' if one['long_prompt_clipped'] else ''}: {one['long_prompt_ms']:.0f} ms\n\n"
        + table(_REWARDS, one["loads"])
        for one in found
    )


def journal(found: Row) -> str:
    """What the journal takes."""
    return f"Encoding a record: {found['encode_ms']:.3f} ms\n\n" + table(_JOURNAL, found["rows"])


def growth(rows: Sequence[Row]) -> str:
    """A line for each thing that was varied, its points in order."""
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


def faults(rows: Iterable[Row]) -> str:
    """A line for each fault."""
    return table(
        _FAULTS,
        (
            {
                **row,
                "saw": ", ".join(f"{count} {name}" for name, count in row["outcomes"].items()),
                "slowest": _seconds(row["slowest_s"]),
                "normal": _seconds(row["normal_after_s"]),
                "arrived": _seconds(row["arrived_after_s"]),
            }
            for row in rows
        ),
    )


def load(phases: Iterable[Row]) -> str:
    """A line for each kind of request, in the closed loop and in the open one."""
    return table(_LOAD, ({**line, "loop": phase["shape"]} for phase in phases for line in phase["lines"]))


def hostile(cases: Sequence[Row], groups: Mapping[str, str]) -> str:
    """A line for each group of hostile cases."""
    lines = []
    for group, title in groups.items():
        found = Counter(case["outcome"] for case in cases if case["group"] == group)
        told = ", ".join(f"{outcome} × {count}" for outcome, count in found.most_common())
        lines.append({"group": title, "cases": found.total(), "outcomes": told})
    return table(_HOSTILE, lines)


def soak(found: Row) -> str:
    """What was asked and answered, whatever should not be, and a line for each quantity that was watched."""
    outcomes = ", ".join(f"{count:,} {name}" for name, count in found["outcomes"].items())
    about = found["about"]
    told = [
        f"{about['minutes']:g} minutes at {about['rate_per_s']:.1f} requests/s (this machine's capacity: "
        f"{about['capacity_per_s']:.1f}): {outcomes}; p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms; "
        f"{found['acknowledged']:,} acknowledged, {found['missing']:,} of them missing in Redis."
    ]
    if found["failures"]:
        told.append(f"**Failed:** {'; '.join(found['failures'])}.")
    lines = [
        {**one, "quantity": SOAKED[name], "grows": "**yes**" if one["grows"] else "no"}
        for name, one in found["growth"].items()
    ]
    return "\n\n".join([*told, table(_SOAK, lines)])


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """A table for each part that a run has measured, by the name of its place in README."""
    parts: Mapping[str, tuple[str, Callable[[Any], str]]] = {
        "bench overhead": ("overhead", overhead),
        "bench peers": ("peers", peers),
        "bench reward": ("reward", rewards),
        "bench journal": ("journal", journal),
        "cost": ("cost", growth),
        "load": ("phases", load),
        "faults": ("faults", faults),
        "hostile": ("cases", lambda cases: hostile(cases, found["groups"])),
        "soak": ("growth", lambda _: soak(found)),
    }
    return {place: draw(found[name]) for place, (name, draw) in parts.items() if name in found}


def put(page: Path, about: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """Put each table, under its date and machine, between the two comments of its name on a page.

    Raises:
        ValueError: The page has no place of that name.
    """
    text = page.read_text(encoding="utf-8")
    for name, drawn in named.items():
        mark = f"<!-- {name} -->"
        if text.count(mark) != 2:
            raise ValueError(f"{page} has no place for {name}: it wants two lines {mark}")
        before, _, after = text.split(mark)
        text = f"{before}{mark}\n{titled(about, drawn)}\n{mark}{after}"
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Put the tables of results where a page has places for them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("page", type=Path, help="README.md")
    parser.add_argument("results", type=Path, nargs="+", help="JSON of a bench or a load test")
    options = parser.parse_args()
    for file in options.results:
        found = json.loads(file.read_text(encoding="utf-8"))
        put(options.page, found["about"], blocks(found))


if __name__ == "__main__":
    main()
