"""The soak: growth, failures, and its table."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from loadtests import tables
from loadtests.growth import Allowance, Growth, growth
from loadtests.soak import ALLOWED, Sample, verdict, write_results

FLAT = {"memory_mb": Growth(100.0, 101.0, False)}


def test_noise_around_a_constant_is_no_growth() -> None:
    """Medians of thirds do not follow single peaks."""
    noise = random.Random(0)
    samples = [100.0 + noise.uniform(-5, 5) for _ in range(200)]
    samples[-1] = 500.0
    assert not growth(samples, Allowance(0.05, 1.0)).grows


def test_a_steady_leak_is_growth() -> None:
    """A slow one too."""
    found = growth([100.0 + 0.2 * second for second in range(100)], Allowance(0.05, 1.0))
    assert found.grows
    assert found.before < found.after


def test_the_warm_up_is_left_out() -> None:
    """A cache that fills at the start is not a leak."""
    assert not growth([10.0] * 20 + [100.0] * 80, Allowance(0.0, 0.0)).grows


def test_nothing_is_allowed_where_nothing_is_allowed() -> None:
    """One entry left behind by each call shows, even if there are few."""
    assert growth([0.0] * 50 + [1.0] * 50, Allowance(0.0, 0.0)).grows
    assert not growth([0.0] * 100, Allowance(0.0, 0.0)).grows


def test_too_few_samples_say_so() -> None:
    """They do not pass as a flat line."""
    with pytest.raises(ValueError, match="too few"):
        growth([1.0, 1.0], Allowance(0.0, 0.0))


@pytest.mark.parametrize(
    ("found", "outcomes", "missing", "complaint"),
    [
        ({"tasks": Growth(10.0, 99.0, True)}, {"scored": 9}, 0, "tasks grows from 10 to 99"),
        (FLAT, {"scored": 9, "fallback": 1}, 0, "clients saw {'fallback': 1}"),
        (FLAT, {}, 0, "nothing was answered"),
        (FLAT, {"scored": 9}, 2, "2 acknowledged records are missing in Redis"),
    ],
)
def test_each_failure_fails_the_soak(
    found: dict[str, Growth], outcomes: dict[str, int], missing: int, complaint: str
) -> None:
    """Each has a complaint of its own, and a good run has none."""
    assert [complaint] == verdict(found, outcomes, missing)
    assert [] == verdict(FLAT, {"scored": 9}, 0)


def _rewritten(folder: Path, **facts: Any) -> dict[str, Any]:
    """Write a soak's result, and read it again."""
    load: dict[str, object] = {"capacity_per_s": 230.5, "rate_per_s": 161.3, "minutes": 20.0}
    good = {"outcomes": {"scored": 193_560}, "p50_ms": 57.6, "p99_ms": 91.2, "acknowledged": 193_560, "missing": 0}
    growths = {name: asdict(Growth(10.0, 10.5, False)) for name in ALLOWED}
    samples = [Sample(0.0, *[10.0] * 5), Sample(5.0, *[10.5] * 5)]
    write_results(samples, {**good, "failures": [], "growth": growths, **facts}, load, folder / "soak.json")
    found: dict[str, Any] = json.loads((folder / "soak.json").read_text())
    return found


def test_a_soak_is_a_sentence_and_a_line_for_each_quantity(tmp_path: Path) -> None:
    """Every quantity that is watched has its own words there."""
    told, _, *lines = tables.blocks(_rewritten(tmp_path))["soak"].splitlines()
    said = (
        "20 minutes at 161.3 requests/s (this machine's capacity: 230.5): 193,560 scored; p50 58 ms, p99 91 ms; "
        "193,560 acknowledged, 0 of them missing in Redis."
    )
    assert said == told
    assert list(tables.SOAKED) == list(ALLOWED)
    assert [f"| {words} | 10.0 | 10.5 | no |" for words in tables.SOAKED.values()] == lines[2:]


def test_what_fails_a_soak_stands_in_its_table(tmp_path: Path) -> None:
    """The page shows a failed run as failed."""
    growths = {"tasks": asdict(Growth(10.0, 99.0, True))}
    drawn = tables.blocks(_rewritten(tmp_path, failures=["tasks grows from 10 to 99"], growth=growths))["soak"]
    assert "**Failed:** tasks grows from 10 to 99." in drawn
    assert "| tasks of the event loop | 10.0 | 99.0 | **yes** |" in drawn
