"""The collecting pass before a night: records are archived even when no night can start or continue."""

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
class CollectingPass:
    """The collecting pass before an attempt at a night: the records that it archived, or the error that ended it."""

    collected: Collected | None = None
    error: Exception | None = None

    def result(self) -> Collected:
        """Return the records that the pass archived.

        Raises:
            Exception: The error that ended the pass.
        """
        if self.error is not None:
            raise self.error
        return self.collected or Collected()


def collect_first(redis: RedisSettings, dataset: DatasetSettings, console: Console) -> CollectingPass:
    """Archive the records in the journal's stream and trim Redis.

    An error is returned, not raised: a night that has its records already can continue without this pass.
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
            return CollectingPass(error=error)
    return CollectingPass(collected=done)
