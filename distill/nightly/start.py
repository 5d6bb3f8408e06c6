"""How a night begins: what can be refused at once is, before hours are spent; then a new run, or the unfinished one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.console import Console

from distill.errors import DataError, PromotionError, SettingsError
from distill.evaluation.scoring import adapter_digest, judge_settings
from distill.nightly.context import STEPS, Night
from distill.nightly.manifest import check_fits, check_legible, known_policies, manifest
from distill.promotion import policies
from distill.promotion.adapter import adapter_named
from distill.run_dir import RunDir, find_run, new_run, runs
from distill.settings import Settings
from gateway.policy import Policy
from gateway.settings import Settings as GatewaySettings


def begin(
    settings: Settings,
    gateway: GatewaySettings,
    console: Console,
    *,
    until: str = STEPS[-1],
    resume: str | None = None,
    new: bool = False,
) -> Night:
    """The night to run: the named one, else the last one if it is unfinished, else a new one.

    Args:
        settings: The night's.
        gateway: The gateway's.
        console: Where the night tells what it does.
        until: The last step to run.
        resume: A run to take up again.
        new: Begin anew although the last run is unfinished.

    Raises:
        SettingsError: The night could not come to its end with these settings.
        RunMismatch: The run is missing or damaged, or was begun with other settings.
        DataError: The serving adapter's folder is not there.
        NightError: Redis does not say which policy serves.
    """
    check(settings, gateway)
    run = find_run(settings.night.runs_dir, resume) if resume else None if new else unfinished(settings)
    if run is None:
        known = asyncio.run(known_policies(gateway))
        check_adapter(known[0], settings)
        told = manifest(settings, gateway, known[0], rolled_back=rolled_back(settings, known))
        run = new_run(settings.night.runs_dir, told)
        console.print(f"night {run.id} begins", markup=False, highlight=False)
    else:
        check_fits(run, settings, gateway)
        check_adapter(Policy.model_validate(run.manifest["serving"]), settings)
        done = ", ".join(step for step in STEPS if run.result(step) is not None) or "nothing"
        console.print(f"night {run.id} goes on; done: {done}", markup=False, highlight=False)
    run.begin()
    return Night(settings, gateway, run, console, until)


def rolled_back(settings: Settings, known: Sequence[Policy]) -> set[str]:
    """Adapters that were taken back: as the policy's history says, and as the last run knew where Redis forgot."""
    last = runs(settings.night.runs_dir)[-1:]
    remembered = set(last[0].manifest.get("rolled_back", [])) if last else set()
    serving = {known[0].adapter, None if known[0].canary is None else known[0].canary.adapter}
    return policies.rolled_back(known) | (remembered - serving)


def unfinished(settings: Settings) -> RunDir | None:
    """The last run, if it did not come to its end.

    Raises:
        RunMismatch: A run's manifest cannot be read, so that nobody knows which is the last.
    """
    every = runs(settings.night.runs_dir)
    for run in every:
        check_legible(run)
    return every[-1] if every and not every[-1].finished else None


def check_adapter(serving: Policy, settings: Settings) -> None:
    """Refuse a night whose serving adapter is not there: what it trains is compared with that one's weights.

    Raises:
        DataError: Says what is missing, and what to do.
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


def check(settings: Settings, gateway: GatewaySettings) -> None:
    """Refuse what would only fail hours later.

    Raises:
        SettingsError: Says what to set.
    """
    if not gateway.reward.model and not gateway.reward.url:
        raise SettingsError("no reward model: set GATEWAY_REWARD__MODEL or GATEWAY_REWARD__URL, as the gateway has it")
    adapter_digest(gateway.reward.adapter)
    judge_settings(gateway.reward, settings.evaluation.judge_model, settings.evaluation.judge_adapter)
    if settings.evaluation.judge_adapter is not None:
        adapter_digest(settings.evaluation.judge_adapter)
