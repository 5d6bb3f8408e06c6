"""``make bench`` and ``loadtests.cost``: their arithmetic, and the tables and figures made of results."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gateway.types import BatchStats
from loadtests import bench, cost, journal, reward, tables
from loadtests.closed_loop import closed_loop
from loadtests.mutants import summary
from loadtests.overhead import Load, compare
from loadtests.stack import stack

ROW = {
    "n": 4,
    "concurrency": 16,
    "stub_p50_ms": 52.04,
    "p50_ms": 60.0,
    "p99_ms": 70.0,
    "added_ms": 7.96,
    "draws_ms": 3.0,
    "rewards_ms": 2.0,
    "journal_ms": 1.5,
    "own_ms": 1.0,
    "http_ms": 0.5,
    "requests_per_s": 201.4,
    "cpu_ms": 3.26,
    "reward_calls": 2.5,
}


async def test_a_closed_loop_keeps_its_callers_busy_and_no_more() -> None:
    """As many calls are under way as there are callers."""
    under_way, most = 0, 0

    async def call() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.005)
        under_way -= 1

    measured = await closed_loop(call, concurrency=3, seconds=0.1, warm_up_s=0.05)
    assert (3, 3) == (most, measured.concurrency)
    assert measured.p50_ms >= 5


async def test_a_loop_too_short_for_its_callers_lasts_until_each_has_two_answers() -> None:
    """A slow machine delays a measurement; it does not end a run of ten minutes."""
    measured = await closed_loop(lambda: asyncio.sleep(0.05), concurrency=2, seconds=0.01, warm_up_s=0.0)
    assert 4 == measured.requests


def test_rounds_with_peers_count_by_their_median() -> None:
    """One slow minute of a shared machine decides nothing; the extremes show it."""
    rates = {"we": (250.0, 120.0, 260.0), "they": (140.0, 138.0, 131.0)}
    rounds = [{**ROW, "who": who, "waits": 1, "requests_per_s": rates[who][at]} for at in range(3) for who in rates]
    ours, theirs = bench.middle(rounds)
    assert ("we", 16, 250.0, 120.0, 260.0) == tuple(
        ours[name] for name in ("who", "concurrency", "requests_per_s", "least_per_s", "most_per_s")
    )
    assert ("they", 138.0, 3) == (theirs["who"], theirs["requests_per_s"], theirs["rounds"])


async def test_stages_and_the_stub_add_up_to_what_a_caller_waits_for() -> None:
    """A load through the real gateway: every draw is scored, and its stages explain its latency."""
    async with stack(latency_ms=20.0) as running:
        row: Any = await compare(running, Load(n=2, concurrency=2, seconds=0.5))
    assert (2, 2) == (row["n"], row["concurrency"])
    assert row["p50_ms"] == pytest.approx(row["stub_p50_ms"] + row["added_ms"])
    assert row["reward_calls"] > 0
    assert row["cpu_ms"] > 0
    stages = ("draws_ms", "rewards_ms", "journal_ms", "own_ms", "http_ms")
    # Medians of parts are not parts of the median: near it, on a machine that does other things too.
    assert row["added_ms"] == pytest.approx(sum(row[stage] for stage in stages), abs=max(20.0, row["added_ms"]))


def test_a_table_has_a_cell_for_every_column() -> None:
    """Rows become Markdown."""
    heading, rule, cells = tables.overhead([ROW]).splitlines()
    assert {heading.count("|")} == {rule.count("|"), cells.count("|")}
    assert "| 16 | 4 | 52.0 | 60.0 | 70.0 | 8.0 | 3.0 |" in cells


def test_a_result_has_a_table_for_each_part_that_was_measured() -> None:
    """A run of some parts leaves the other places of a page as they are."""
    peer = {**ROW, "who": "another", "waits": 2, "beyond_waits_ms": 1.0}
    found = {"about": {}, "peers": bench.middle([peer]), "journal": {"encode_ms": 0.02, "rows": []}}
    drawn = tables.blocks(found)
    assert ["bench peers", "bench journal"] == list(drawn)
    assert "| 16 | another | 2 |" in drawn["bench peers"]
    assert "0.020 ms" in drawn["bench journal"]
    assert ["cost"] == list(tables.blocks({"about": {}, "cost": _grown()}))


def test_tables_go_where_a_page_has_places_for_them(tmp_path: Path) -> None:
    """A table replaces the old one, the text around it stays, and a page without the place is an error."""
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- cost -->\nold\n<!-- cost -->\nafter\n")
    tables.put(page, {"date": "today"}, {"cost": "| new |"})
    assert page.read_text() == "before\n<!-- cost -->\ndate today\n\n| new |\n<!-- cost -->\nafter\n"
    with pytest.raises(ValueError, match="no place for bench peers"):
        tables.put(page, {}, {"bench peers": ""})


def test_results_of_load_faults_and_hostile_cases_become_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each kind of request, each fault, each group of cases."""
    page, load, faults, hostile = (
        tmp_path / name for name in ("README.md", "load.json", "faults.json", "hostile.json")
    )
    page.write_text("".join(f"<!-- {name} -->\n" * 2 for name in ("load", "faults", "hostile")))
    line = {
        "name": "chat",
        "requests": 7,
        "failed": 0,
        "p50_ms": 57.2,
        "p95_ms": 65.0,
        "p99_ms": 87.0,
        "slowest_ms": 129.0,
    }
    load.write_text(json.dumps({"about": {"limits": {}}, "phases": [{"shape": "closed", "lines": [line]}]}))
    counts = {"acknowledged": 9, "lost": 0, "wiped": 0}
    times = {"slowest_s": 0.25, "normal_after_s": 1.5, "arrived_after_s": None}
    fault = {"must_hold": "nothing is lost", "outcomes": {"scored": 8, "502": 1}, **counts, **times}
    faults.write_text(json.dumps({"about": {"date": "today"}, "faults": [fault]}))
    good = {"group": "http", "outcome": "400", "blame": "caller", "failures": []}
    upstream = {"group": "backend", "outcome": "502", "blame": "upstream", "failures": []}
    cases = [good, {**good, "failures": ["a 5xx of ours"]}, upstream, {**upstream, "outcome": "200 error event"}]
    about = {"about": {"date": "today"}, "groups": {"http": "HTTP", "backend": "answers"}, "cases": cases}
    held = {"no traceback": "", "memory does not grow": "it grew"}
    memory = {"memory_mb": {"tgi": [99.6, 101]}, "peak_mb": {"tgi": 120}}
    hostile.write_text(json.dumps({**about, "held": held, **memory}))
    monkeypatch.setattr(sys, "argv", ["tables", str(page), str(load), str(faults), str(hostile)])
    tables.main()
    assert "| closed | chat | 7 | 0 | 57 | 65 | 87 | 129 |" in page.read_text()
    assert "| nothing is lost | 8 scored, 1 502 | 0.2 s | 9 | 0 | 0 | 1.5 s | never |" in page.read_text()
    assert "9 answers were acknowledged, 0 of them are lost." in page.read_text()
    assert "| HTTP | 2 | 400 × 2 |" in page.read_text()
    assert "| answers | 2 | 502 upstream × 1, 200 error event × 1 |" in page.read_text()
    totals = "4 cases; 2 cases or checks failed. Memory on tgi after each round: 100, 101 MB, at most 120."
    assert totals in page.read_text()


def test_starts_and_mutants_become_tables() -> None:
    """A line for each source of rewards, and for each room."""
    row = {"kind": "local reward", "count": 50, "good": 49, "median_s": 20.71}
    assert "| local reward | 50 | 49 | 20.7 |" in tables.blocks({"about": {}, "starts": [row]})["starts"]
    found = {"about": {}, **summary({"gateway.api.a": "killed", "gateway.api.b": "survived"}, made=9_000)}
    rendered = tables.blocks(found)["mutants"]
    assert "1 of 2 mutants, out of 9,000, made a test fail: 50% [9%, 91%]." in rendered
    assert "| gateway.api | 2 | 1 | 50% |" in rendered


def test_the_page_of_measurements_has_a_place_for_every_table() -> None:
    """Each name that the measurements write under stands there twice."""
    readme = Path("loadtests/README.md").read_text(encoding="utf-8")
    names = [
        *(f"bench {part}" for part in bench.PARTS),
        "cost",
        "load",
        "soak",
        "faults",
        "hostile",
        "starts",
        "mutants",
    ]
    assert dict.fromkeys(names, 2) == {name: readme.count(f"<!-- {name} -->") for name in names}


def test_a_journal_without_a_folder_spools_in_an_ignored_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the checkout's disk, in ``data/``; only that folder is left."""
    ignored = Path(".gitignore").read_text(encoding="utf-8").splitlines()
    monkeypatch.chdir(tmp_path)
    found: Any = asyncio.run(journal.run(0.01))
    assert 6 == len(found["rows"])
    assert [tmp_path / "data"] == list(tmp_path.rglob("*"))
    assert "/data/" in ignored


def test_a_load_on_the_batcher_reports_padding_and_waits() -> None:
    """Padding is the share of the padded tokens that are not input."""
    batches = [BatchStats(2, 60, 80, 3.0, 9.0, 0, False), BatchStats(6, 300, 400, 5.0, 20.0, 0, False)]
    figures = reward.Load(races=1, seconds=2.0, answers=8, race_ms=[30.0], batches=batches).figures()
    assert {"pairs_per_s": 4.0, "pairs_per_batch": 4, "padding": 0.25, "wait_p50_ms": 4.0} == {
        name: figures[name] for name in ("pairs_per_s", "pairs_per_batch", "padding", "wait_p50_ms")
    }
    model = {"model": "m", "device": "cpu", "dtype": "float32", "long_prompt_ms": 900.0, "long_prompt_clipped": True}
    assert "| 1 | 4.0 | 4.0 | 25.0% | 4.0 | 5.0 | 30.0 |" in tables.rewards([{**model, "loads": [figures]}])


def _grown() -> list[dict[str, Any]]:
    names = {"N": "draws", "concurrency": "callers", "prompt": "characters", "Redis": "ms late"}
    names["Redis, a key with limits"] = "ms late"
    return [{"sweep": name, "unit": unit, "at": at, **ROW} for name, unit in names.items() for at in (1, 1000)]


def test_each_thing_that_grows_is_a_line() -> None:
    """It holds the points in their order."""
    lines = tables.growth(_grown()).splitlines()
    assert 2 + 5 == len(lines)
    assert "| N | 1 · 1,000 draws | 8.0 · 8.0 | 3.3 · 3.3 | 201 · 201 |" == lines[2]


def test_the_figure_has_four_panels_of_two_curves() -> None:
    """It is well-formed XML, as browsers need it."""
    name = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(cost.figure(_grown()))
    assert [2, 2, 2, 2] == [len(panel.findall(f"{name}path")) for panel in root.findall(f"{name}g")]


def test_every_sweep_varies_one_thing_from_the_same_point() -> None:
    """So its line shows the effect of that thing alone."""
    loads = [
        load for sweep in cost.sweeps(1.0) for _, load, delay_s in sweep.at if delay_s == 0 and load.key == cost.FREE
    ]
    base = Load(4, 4, 1.0, prompt=cost.prompt(1_000), key=cost.FREE)
    for load in loads:
        assert (load.n != base.n) + (load.concurrency != base.concurrency) + (load.prompt != base.prompt) <= 1
    assert [100, 64_000] == [len(cost.prompt(characters)) for characters in (100, 64_000)]
