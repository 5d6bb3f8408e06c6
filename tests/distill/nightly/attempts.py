"""One attempt at a night in its own process, which can kill itself, so that a real kill -9 leaves its traces.

The fleet is the TGI stub: it serves what it is told to, and a new adapter's answers are rich in words, which the
reward stub likes. Its log-probabilities are made up, so the check by behaviour is left out here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

_PRELOADED = ["distill.nightly.pipeline", "distill.training.train", "distill.promotion.publish", "distill.__main__"]

patch = pytest.MonkeyPatch()
"""Patches of an attempt's own process, which ends with it."""

Kill = tuple[str, int | None]
"""A step, and the number of advances of its progress bar before the kill; None: just before its marker is written."""


def attempt(environment: Mapping[str, str], arguments: Sequence[str] = (), kill: Kill | None = None) -> int:
    """Run ``python -m distill run`` with these variables; return its exit code, -9 if it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(dict(environment), list(arguments), kill))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(environment: dict[str, str], arguments: list[str], kill: Kill | None) -> None:
    os.environ.update(environment)
    from typer.testing import CliRunner

    from distill.__main__ import app

    _serve_published_adapters(environment["GATEWAY_BACKEND__URLS"])
    if "ATTEMPT_FILE_BYTES" in environment:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(environment["ATTEMPT_FILE_BYTES"]), hard))
    if kill is not None:
        _kill_at(*kill)
    result = CliRunner().invoke(app, ["run", *arguments])
    with contextlib.suppress(OSError), Path(environment["ATTEMPTS_LOG"]).open("a") as sink:
        sink.write(f"{result.output}\n{result.exception!r}\n")
    os._exit(result.exit_code)


def _serve_published_adapters(url: str) -> None:
    from distill.nightly import checkpoint_adapters
    from distill.nightly.steps import rollout

    async def loaded(adapter: Any, *_: object) -> None:
        _set_knobs(
            url, adapters=[adapter.name], **{f"{os.environ.get('ATTEMPT_ADAPTERS', 'rich')}_adapters": [adapter.name]}
        )

    async def checked(*_: object) -> list[str]:
        return ["it answers"]

    for module in (checkpoint_adapters, rollout):
        patch.setattr(module, "load_adapter", loaded)
        patch.setattr(module, "check_replicas", checked)


def _set_knobs(url: str, **knobs: Any) -> None:
    request = urllib.request.Request(f"{url}/_stub/knobs", orjson.dumps(knobs), {"Content-Type": "application/json"})
    with contextlib.suppress(urllib.error.URLError):  # the fleet is down
        urllib.request.urlopen(request).close()


def _kill_at(step: str, move: int | None) -> None:
    from distill.nightly.context import Advance, Night
    from distill.nightly.results import StepResult

    run_step, bar = Night.step, Night.bar
    number = int(os.environ.get("ATTEMPT_SIGNAL", signal.SIGKILL))
    now: list[str] = []

    def killed_step(night: Night, kind: type[StepResult], action: Callable[..., Any], *results: Any) -> StepResult:
        def killed(night: Night, *results: Any) -> StepResult:
            result: StepResult = action(night, *results)
            if kind.step == step and move is None:
                os.kill(os.getpid(), number)
            return result

        now[:] = [kind.step]
        return run_step(night, kind, killed, *results)

    @contextmanager
    def killed_bar(night: Night, text: str, total: int | None) -> Iterator[Advance]:
        with bar(night, text, total) as advance:
            left = move if now == [step] else None

            def counted(count: int, total: int | None = None) -> None:
                nonlocal left
                advance(count, total)
                if left is not None and count:
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), number)

            yield counted

    patch.setattr(Night, "step", killed_step)
    patch.setattr(Night, "bar", killed_bar)
    if step == "collect" and move is not None:
        _kill_while_collecting(number)


def _kill_while_collecting(number: int) -> None:
    """Kill this process as soon as a batch is archived and acknowledged."""
    from distill.dataset.collect import collect
    from distill.nightly import collecting

    async def killed(*args: Any, **options: Any) -> Any:
        return await collect(*args, **{**options, "on_archived": lambda _: os.kill(os.getpid(), number)})

    patch.setattr(collecting, "collect_journal", killed)
