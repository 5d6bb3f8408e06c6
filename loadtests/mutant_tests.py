"""A pytest plugin for mutants: it selects and orders the tests that run against one.

mutmut runs every test that reaches the mutant's function, in no order, and ends at the first that fails.

- **The fastest first.** Most mutants are killed by a test of milliseconds. A survivor would have to wait for every test
  over HTTP: only tests that take ``MOST_S`` seconds together run, and none that takes ``MOST_OF_ONE_S`` alone. A mutant
  that only another test notices has survived.
- **None that fails without a mutant.** On a busy machine tests of time and memory fail by themselves, and would count
  as kills. Tests that fail in either of mutmut's two runs without a mutant are left out.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

MOST_S = 30.0
MOST_OF_ONE_S = 2.0
MOST_WITH_HANGS_S = 90.0
"""After this the run counts as a time-out: mutmut knows it by the signal."""
STATISTICS = Path("mutmut-stats.json")
"""mutmut's: how long each test took without a mutant. pytest runs in mutmut's folder."""
FAILING = Path("failing-tests.json")
"""Names of the tests that fail without a mutant."""

_WITHOUT_MUTANT = frozenset({"", "stats"})
_NO_CHOICE = frozenset({"stats", "fail", "list_all_tests", "mutant_generation"})


def pytest_configure(config: pytest.Config) -> None:
    """Collect the tests that fail without a mutant without stopping at them; end those that hang because of one."""
    mutant = _under_test()
    if mutant in _WITHOUT_MUTANT:
        config.option.maxfail = 0
        config.pluginmanager.register(_Failures(), "mutant-failures")
    elif mutant not in _NO_CHOICE:
        # mutmut's own limit is many times what all tests of the function take: half an hour for the api.
        limit = threading.Timer(MOST_WITH_HANGS_S, os.kill, (os.getpid(), signal.SIGXCPU))
        limit.daemon = True
        limit.start()


class _Failures:
    """Writes the names of failed tests to a file, and lets the run pass."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._names.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.TESTS_FAILED:
            FAILING.write_text(json.dumps(sorted(self._names | _failing()), indent=1), encoding="utf-8")
            session.exitstatus = pytest.ExitCode.OK


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort and shorten the list of tests, once their durations are known."""
    mutant = _under_test()
    if mutant in _NO_CHOICE or not STATISTICS.exists():
        return
    durations_s: dict[str, float] = json.loads(STATISTICS.read_text(encoding="utf-8"))["duration_by_test"]
    by_name = {item.nodeid: item for item in items}
    kept = chosen([name for name in by_name if name not in _failing()], durations_s, MOST_S if mutant else math.inf)
    config.hook.pytest_deselected(items=[item for name, item in by_name.items() if name not in kept])
    items[:] = [by_name[name] for name in kept]


def chosen(tests: Sequence[str], durations_s: Mapping[str, float], most_s: float = MOST_S) -> list[str]:
    """Return the fastest tests that take ``most_s`` seconds together, the fastest first, and at least one.

    Args:
        tests: Their names.
        durations_s: Durations by name; a new test counts as 0.
        most_s: Longest time of all of them together.
    """
    kept: list[str] = []
    left_s = most_s
    for test in sorted(tests, key=lambda test: durations_s.get(test, 0.0)):
        duration_s = durations_s.get(test, 0.0)
        left_s -= duration_s
        if kept and (left_s < 0 or duration_s > MOST_OF_ONE_S):
            break
        kept.append(test)
    return kept


def _under_test() -> str:
    return os.environ.get("MUTANT_UNDER_TEST", "")


def _failing() -> set[str]:
    return set(json.loads(FAILING.read_text(encoding="utf-8"))) if FAILING.exists() else set()
