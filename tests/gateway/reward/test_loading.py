"""Loading in a thread: on first use, once, and again after a failure."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from structlog.testing import capture_logs

from gateway.reward import loading
from gateway.reward.loading import Loading, import_error

# Two threads that import transformers at the same moment, under the lock that the gateway's own threads take.
_TWO_IMPORTS = """
import threading
from gateway.reward.loading import IMPORTS
barrier = threading.Barrier(2)
def load():
    barrier.wait()
    with IMPORTS:
        from transformers import AutoTokenizer
    loaded.append(AutoTokenizer)
loaded = []
threads = [threading.Thread(target=load) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(loaded) == 2, loaded
"""


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def test_nothing_is_loaded_before_the_start_and_all_get_the_same_value(thread: ThreadPoolExecutor) -> None:
    calls: list[int] = []

    def load() -> str:
        calls.append(1)
        return "value"

    value = Loading(load, thread, what="model")
    assert ([], None, None) == (calls, value.value, value.error)
    wait([value.start(), value.start()])
    value.start()
    assert ([1], "value") == (calls, value.value)


def test_a_failure_is_logged_with_its_cause_and_retried_after_a_pause(
    thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("gateway.reward.loading.time.monotonic", lambda: now_s)
    failures: list[Exception] = [ImportError("cannot import name 'AutoTokenizer'"), OSError("the hub is away")]

    def load() -> str:
        if not failures:
            return "value"
        failure = failures.pop(0)
        if isinstance(failure, ImportError):
            raise import_error(failure, "the tokenizer") from failure
        raise failure

    value = Loading(load, thread, what="reward tokenizer")
    with capture_logs() as logs:
        wait([value.start()])
        assert "cannot import what it needs" in str(value.error)
        for pause_s in (loading.FIRST_PAUSE_S, 2 * loading.FIRST_PAUSE_S):
            now_s += pause_s - 0.001
            failed = value.start()
            assert failed.done(), "too early for another attempt"
            now_s += 0.001
            wait([value.start()])
    assert "value" == value.value
    assert value.error is None
    assert ["ImportError: cannot import name 'AutoTokenizer'", "OSError: the hub is away"] == [
        line["cause"] for line in logs if line["event"] == "not_loaded"
    ]


def test_pauses_stop_growing_at_the_longest(thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, attempts = 0.0, 0
    monkeypatch.setattr("gateway.reward.loading.time.monotonic", lambda: now_s)

    def load() -> str:
        nonlocal attempts
        attempts += 1
        raise OSError

    value = Loading(load, thread, what="model")
    for _ in range(20):
        wait([value.start()])
        now_s += loading.LONGEST_PAUSE_S
    assert 20 == attempts


def test_two_threads_can_import_transformers_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", _TWO_IMPORTS], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


def test_a_missing_package_names_the_extra_and_a_broken_one_does_not() -> None:
    assert "m needs ratchet[reward]: No module named 'torch'" == str(
        import_error(ModuleNotFoundError("No module named 'torch'"), "m")
    )
    assert "m cannot import what it needs: undefined symbol" == str(import_error(ImportError("undefined symbol"), "m"))
