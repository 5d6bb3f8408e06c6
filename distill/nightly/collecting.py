"""Collecting, before everything else of a night: it must not depend on whether a night can begin, or go on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from rich.console import Console

from distill import exits
from distill.dataset.collect import Collected
from distill.dataset.collect import collect as collect_journal
from distill.progress import counting
from distill.settings import DatasetSettings
from gateway.settings import RedisSettings


@dataclass(frozen=True, slots=True)
class FirstPass:
    """The collecting pass at the start of an attempt at a night: what it did, or why it failed."""

    collected: Collected | None = None
    error: Exception | None = None

    def result(self) -> Collected:
        """Return what the pass did.

        Raises:
            Exception: The error that ended it.
        """
        if self.error is not None:
            raise self.error
        return self.collected or Collected()


def collect_first(redis: RedisSettings, dataset: DatasetSettings, console: Console) -> FirstPass:
    """Archive what the journal's stream holds and trim Redis, whatever state the nights are in.

    A failure is kept, not raised: a night that has its records already can go on without this pass.
    """
    with counting(console, indent="  ") as progress:
        bar = progress.add_task("archiving", total=None)
        try:
            done = asyncio.run(
                collect_journal(
                    redis, dataset, on_archived=lambda so_far: progress.update(bar, completed=so_far.collected)
                )
            )
        except exits.ERRORS as error:
            return FirstPass(error=error)
    return FirstPass(collected=done)
