"""Start or resume a night. Settings are checked first, so that bad input fails before hours of work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from distill.errors import AnotherNight, DataError, PromotionError, SettingsError
from distill.evaluation.scoring import adapter_digest, judge_settings
from distill.nightly.context import Night
from distill.nightly.manifest import check_readable, check_settings, known_policies, new_manifest, read_manifest
from distill.nightly.results import STEPS
from distill.promotion import policies
from distill.promotion.adapter import adapter_named
from distill.run_dir import RunDir, find_run, new_run, runs
from distill.settings import Settings
from gateway.policy import Policy
from gateway.settings import Settings as GatewaySettings


@contextmanager
def only_night(runs_dir: Path) -> Iterator[None]:
    """Hold the lock of the folder of runs. The kernel releases it when the process ends, so it is never stale.

    Raises:
        AnotherNight: Another process holds it.
    """
    runs_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(runs_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise AnotherNight(f"another night runs in {runs_dir}") from error


def start(
    settings: Settings,
    gateway: GatewaySettings,
    console: Console,
    *,
    until: str = STEPS[-1],
    resume: str | None = None,
    new: bool = False,
) -> Night:
    """Resume the named run, else the last one if it is unfinished; else start a new one.

    Args:
        settings: The night's.
        gateway: The gateway's.
        console: Where the night prints what it does.
        until: The last step to run.
        resume: A run to resume.
        new: Start a new run although the last one is unfinished.

    Raises:
        SettingsError: The night could not finish with these settings.
        RunMismatch: The run is missing or damaged, or was begun with other settings.
        DataError: The serving adapter's folder is missing.
        NightError: Redis does not answer, so the serving policy is not known.
    """
    check_reward_models(settings, gateway)
    if resume:
        run: RunDir | None = find_run(settings.night.runs_dir, resume)
    else:
        run = None if new else unfinished_run(settings)
    if run is None:
        known = asyncio.run(known_policies(gateway))
        check_serving_adapter(known[0], settings)
        manifest = new_manifest(settings, gateway, known[0], rolled_back=rolled_back_adapters(settings, known))
        run = new_run(settings.night.runs_dir, manifest)
        console.print(f"night {run.id} begins", markup=False, highlight=False)
    else:
        check_settings(run, settings, gateway)
        check_serving_adapter(read_manifest(run).serving, settings)
        done = ", ".join(step for step in STEPS if run.result(step) is not None) or "nothing"
        console.print(f"night {run.id} goes on; done: {done}", markup=False, highlight=False)
    run.log_attempt()
    return Night(settings, gateway, run, console, until)


def rolled_back_adapters(settings: Settings, known: Sequence[Policy]) -> set[str]:
    """Return the adapters that were rolled back: by the policy's history, and by the last run where Redis lost it."""
    last = runs(settings.night.runs_dir)[-1:]
    remembered = set(last[0].manifest.get("rolled_back", [])) if last else set()
    serving = {known[0].adapter, None if known[0].canary is None else known[0].canary.adapter}
    return policies.rolled_back(known) | (remembered - serving)


def unfinished_run(settings: Settings) -> RunDir | None:
    """Return the last run if it is unfinished.

    Raises:
        RunMismatch: A run's manifest cannot be read, so it is not known which run is the last.
    """
    every = runs(settings.night.runs_dir)
    for run in every:
        check_readable(run)
    return every[-1] if every and not every[-1].finished else None


def check_serving_adapter(serving: Policy, settings: Settings) -> None:
    """Refuse a night whose serving adapter is missing: new adapters are compared with its weights.

    Raises:
        DataError: Names the adapter, and says what to do.
    """
    try:
        if serving.adapter is not None:
            adapter_named(serving.adapter, settings.promotion.adapters_dir)
    except PromotionError as error:
        raise DataError(
            f"the policy serves {serving.adapter}, but {error}: restore the adapter's folder in "
            f"{settings.promotion.adapters_dir} (DISTILL_PROMOTION__ADAPTERS_DIR); or have another policy serve "
            "(python -m distill rollback, or python -m gateway policy set) and begin anew with --new"
        ) from error


def check_reward_models(settings: Settings, gateway: GatewaySettings) -> None:
    """Refuse settings of reward models that would only fail hours later.

    Raises:
        SettingsError: Says what to set.
    """
    if not gateway.reward.model and not gateway.reward.url:
        raise SettingsError("no reward model: set GATEWAY_REWARD__MODEL or GATEWAY_REWARD__URL, as the gateway has it")
    adapter_digest(gateway.reward.adapter)
    judge_settings(gateway.reward, settings.evaluation.judge_model, settings.evaluation.judge_adapter)
    if settings.evaluation.judge_adapter is not None:
        adapter_digest(settings.evaluation.judge_adapter)
