"""Deletion of old run directories: nothing reads their checkpoints and candidates again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import structlog

from distill.errors import PromotionError
from distill.nightly.results import TrainResult
from distill.promotion.adapter import adapter_named
from distill.run_dir import MANIFEST, RunDir, runs
from distill.settings import Settings
from gateway.policy import Policy

log = structlog.get_logger()


def drop_old_runs(settings: Settings, serving: Policy) -> list[str]:
    """Delete runs beyond ``keep_runs``, oldest first, and return their ids. No other night may run.

    Kept beyond that: the last run that trained (the next night reads from it which winners are new), and the runs that
    published the serving policy's adapters.

    Args:
        settings: The folders of runs and adapters, and how many runs are kept.
        serving: The policy that serves.
    """
    every = runs(settings.night.runs_dir)
    trained = [run.id for run in every if run.finished and run.result(TrainResult.step) is not None]
    needed = {*trained[-1:], *_runs_of(serving, settings.promotion.adapters_dir)}
    old = [run for run in every[: -settings.night.keep_runs] if run.id not in needed]
    for run in old:
        _delete(run)
    if old:
        log.info("old_runs_deleted", runs=[run.id for run in old])
    return [run.id for run in old]


def _runs_of(policy: Policy, adapters_dir: Path) -> Iterator[str]:
    """Yield the ids of the runs that published a policy's adapters."""
    for adapter in (policy.adapter, None if policy.canary is None else policy.canary.adapter):
        if adapter is not None:
            try:
                yield adapter_named(adapter, adapters_dir).manifest.run
            except PromotionError:
                continue  # set by hand, or its folder is missing: no run belongs to it


def _delete(run: RunDir) -> None:
    """Delete a run, its manifest last: if killed halfway, the rest is still a run and goes the next time."""
    for path in run.path.iterdir():
        if path.name == MANIFEST:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.rmtree(run.path)
