"""The share of mutants killed, its interval, and the selection of tests that run against a mutant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.mutant_tests import chosen
from loadtests.mutants import summary


def test_only_a_failed_test_is_a_kill() -> None:
    statuses = ["killed", "killed", "killed", "survived", "timeout", "no tests", "exit -11", None]
    found = summary({f"gateway.api.x_{index}": status for index, status in enumerate(statuses)}, made=100)
    total = found["total"]
    assert (8, 3, 0.375, 100) == (total["run"], total["killed"], total["share"], total["made"])
    assert pytest.approx((0.1368, 0.6943), abs=1e-4) == (total["low"], total["high"])
    assert [f"gateway.api.x_{index}" for index in range(3, 8)] == found["survivors"]
    assert 1 == total["by"]["timeout"] == total["by"]["not run"]


def test_the_share_is_given_by_room() -> None:
    found = summary({"gateway.api.a": "killed", "distill.promotion.b": "killed", "gateway.api.c": "survived"}, made=3)
    assert [("distill.promotion", 1, 1.0), ("gateway.api", 2, 0.5)] == [
        (room["room"], room["run"], room["share"]) for room in found["rooms"]
    ]


@pytest.mark.parametrize(
    ("most_s", "expected"),
    [
        (0.0, ["new"]),
        (0.99, ["new"]),
        (1.0, ["new", "quick"]),
        (2.99, ["new", "quick"]),
        (3.0, ["new", "quick", "slow"]),
    ],
)
def test_the_fastest_tests_run_as_far_as_their_time_reaches(most_s: float, expected: list[str]) -> None:
    assert expected == chosen(["slow", "quick", "new"], {"slow": 2.0, "quick": 1.0}, most_s)


@pytest.mark.parametrize(("slow_s", "runs"), [(1.99, True), (2.0, True), (2.01, False)])
def test_no_test_of_more_than_two_seconds_runs(slow_s: float, runs: bool) -> None:
    assert runs == ("slow" in chosen(["slow", "quick"], {"slow": slow_s, "quick": 1.0}))


def test_the_fastest_test_always_runs() -> None:
    assert ["slow"] == chosen(["slow", "slower"], {"slow": 50.0, "slower": 60.0}, 30.0)


TESTS = """
def test_slow(): pass
def test_fails(): assert 0
def test_quick(): pass
"""


def ran(folder: Path, mutant: str) -> tuple[int, list[str]]:
    """Run pytest with the plugin in this folder; return its exit code, and the tests that ran, in their order."""
    command = [sys.executable, "-m", "pytest", "-x", "-v", "-p", "loadtests.mutant_tests", "test_some.py"]
    here = str(Path(__file__).parents[2])
    environment = {"MUTANT_UNDER_TEST": mutant, "PYTHONPATH": here, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("test_some.py::")]
    return done.returncode, [line.partition("::")[2] for line in lines]


def test_a_test_that_fails_without_a_mutant_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    assert (0, ["test_slow", "test_fails", "test_quick"]) == ran(tmp_path, "stats")
    durations = {"test_some.py::test_slow": 2.0, "test_some.py::test_fails": 0.1, "test_some.py::test_quick": 0.5}
    (tmp_path / "mutmut-stats.json").write_text(json.dumps({"duration_by_test": durations}))
    assert (0, ["test_quick", "test_slow"]) == ran(tmp_path, "gateway.api.x__mutmut_1")
    (tmp_path / "test_some.py").write_text(TESTS.replace("pass", "assert 0"))
    assert (1, ["test_quick"]) == ran(tmp_path, "gateway.api.x__mutmut_1")
