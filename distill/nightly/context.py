"""One night as it runs: its settings, its folder, and steps that are run once, however often the night is begun."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import structlog
from rich.console import Console

from distill.nightly.collecting import FirstPass
from distill.nightly.results import check_result
from distill.progress import counting
from distill.run_dir import RunDir
from distill.settings import Settings
from gateway.policy import Policy
from gateway.settings import Settings as GatewaySettings

STEPS = (
    "collect",
    "curate",
    "train",
    "draw",
    "score",
    "gate",
    "publish",
    "load",
    "canary",
    "promote",
    "report",
)

Result = dict[str, Any]


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, count: int, of: int | None = None) -> None:
        """By so many steps, of so many where the bar did not know."""
        ...


log = structlog.get_logger()


class UntilReached(Exception):
    """The step of --until is through."""


@dataclass
class Night:
    """What every step is given."""

    settings: Settings
    gateway: GatewaySettings
    run: RunDir
    console: Console
    until: str = STEPS[-1]
    first_pass: FirstPass = field(default_factory=FirstPass)
    """What was collected before this attempt at the night began."""
    results: dict[str, Result] = field(default_factory=dict)

    @cached_property
    def serving(self) -> Policy:
        """The policy that served as the night began: what it is measured against, however long the night takes."""
        return Policy.model_validate(self.run.manifest["serving"])

    def step(self, name: str, action: Callable[[Night], Result]) -> Result:
        """Run a step, unless an earlier attempt at this night got through it; either way its result.

        A step that is killed leaves no marker and is run again: it must find its own way back in.

        Raises:
            UntilReached: The night was asked to go no further than this step.
            DataError: An earlier attempt's marker is malformed.
        """
        result = self.run.result(name)
        if result is not None:
            check_result(name, result, self.run.marker(name))
        else:
            self.console.print(f"[bold]{name}[/]", highlight=False)
            began = time.monotonic()
            try:
                result = action(self)
            finally:
                self.run.spent(name, time.monotonic() - began)
            self.run.mark(name, result)
            log.info("step_finished", step=name, run=self.run.id, seconds=round(time.monotonic() - began, 1))
        self.results[name] = result
        if name == self.until != STEPS[-1]:
            raise UntilReached
        return result

    def say(self, words: str) -> None:
        """Tell the operator something about the step that runs."""
        self.console.print(f"  {words}", markup=False, highlight=False)

    @contextmanager
    def bar(self, words: str, total: int | None) -> Iterator[Advance]:
        """A progress bar with the time left; yields what advances it, and tells the total where it is known later."""
        with counting(self.console, indent="  ") as progress:
            task = progress.add_task(words, total=total)

            def advance(count: int, of: int | None = None) -> None:
                progress.update(task, advance=count, total=total if of is None else of)

            yield advance
