"""The context of a night: its settings, its folder, and a way to run each step once, however often it is resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Concatenate, ParamSpec, Protocol

import structlog
from rich.console import Console

from distill.nightly.collecting import CollectingPass
from distill.nightly.manifest import Manifest, read_manifest
from distill.nightly.results import STEPS, Result, read_result, write_result
from distill.progress import counting
from distill.run_dir import RunDir
from distill.settings import Settings
from gateway.policy import Policy
from gateway.settings import Settings as GatewaySettings

Arguments = ParamSpec("Arguments")

log = structlog.get_logger()


class Advance(Protocol):
    """Advances a progress bar by ``count``; ``total`` sets its length where that was not known before."""

    def __call__(self, count: int, total: int | None = None) -> None: ...


class UntilReached(Exception):
    """The step of --until is done."""


@dataclass
class Night:
    """The context that every step gets."""

    settings: Settings
    gateway: GatewaySettings
    run: RunDir
    console: Console
    until: str = STEPS[-1]
    collecting: CollectingPass = field(default_factory=CollectingPass)
    """The collecting pass that ran before this attempt at the night."""

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.run)

    @property
    def serving(self) -> Policy:
        """The policy that served when the night began: every attempt measures against this one."""
        return self.manifest.serving

    def step(
        self,
        kind: type[Result],
        action: Callable[Concatenate[Night, Arguments], Result],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run a step, or return the result that an earlier attempt at this night left.

        A step that is killed leaves no marker and runs again: it must be able to continue from what it left.

        Args:
            kind: The type of the step's result.
            action: The step; called with this context and the earlier results that it uses.
            args: Those results.
            kwargs: Those results, by name.

        Raises:
            UntilReached: The night was asked to stop after this step.
            DataError: The marker of an earlier attempt is damaged.
        """
        name = kind.step
        result = read_result(self.run, kind)
        if result is None:
            self.console.print(f"[bold]{name}[/]", highlight=False)
            began = time.monotonic()
            try:
                result = action(self, *args, **kwargs)
            finally:
                self.run.log_seconds(name, time.monotonic() - began)
            write_result(self.run, result)
            log.info("step_finished", step=name, run=self.run.id, seconds=round(time.monotonic() - began, 1))
        if name == self.until != STEPS[-1]:
            raise UntilReached
        return result

    def print(self, text: str) -> None:
        """Print a line about the step that runs."""
        self.console.print(f"  {text}", markup=False, highlight=False)

    @contextmanager
    def bar(self, text: str, total: int | None) -> Iterator[Advance]:
        """Show a progress bar with the time left; yield the function that advances it."""
        with counting(self.console, indent="  ") as progress:
            task = progress.add_task(text, total=total)

            def advance(count: int, total: int | None = None) -> None:
                progress.update(task, advance=count, total=total)

            yield advance
