"""``--dry-run``: print in numbers what a night would do now, and change nothing, here or in Redis."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import redis
from rich.console import Console
from rich.table import Table

from distill.dataset.archive import Archive
from distill.dataset.collect import GROUP
from distill.dataset.curate import Curated, curate
from distill.errors import NightError
from distill.evaluation.prompts import Prompt
from distill.evaluation.sample_store import count_missing
from distill.evaluation.samples import SamplePlan
from distill.nightly import start
from distill.nightly.manifest import known_policies
from distill.nightly.results import STEPS
from distill.nightly.sample_plan import temperatures
from distill.nightly.served_model import last_behaviour, sample_file
from distill.settings import Settings
from gateway.embedded.llama import MODEL_NAME
from gateway.journal.stream import stream_key
from gateway.policy import Policy
from gateway.redis_client import connection_options
from gateway.settings import RedisSettings
from gateway.settings import Settings as GatewaySettings


def print_plan(settings: Settings, gateway: GatewaySettings, console: Console) -> None:
    """Print the plan of a night that would start or resume now.

    Raises:
        SettingsError: The night could not finish with these settings.
        NightError: Redis does not answer.
        DataError: The archive cannot be read, or the serving adapter's folder is missing.
    """
    start.check_reward_models(settings, gateway)
    with tempfile.TemporaryDirectory() as folder:  # so that not even a copy of the policy is written
        known = asyncio.run(known_policies(gateway, folder=Path(folder)))
    start.check_serving_adapter(known[0], settings)
    archive = Archive(settings.dataset.archive_dir)
    rolled_back = start.rolled_back_adapters(settings, known)
    curated = curate(archive.completions(), archive.feedback(), settings.dataset, rolled_back=rolled_back)
    table = Table("step", "plan", title="A night now", title_justify="left")
    for step, text in _rows(settings, gateway, known[0], curated).items():
        table.add_row(step, text)
    console.print(table)


def _rows(settings: Settings, gateway: GatewaySettings, serving: Policy, curated: Curated) -> dict[str, str]:
    run = start.unfinished_run(settings)
    evaluation = settings.evaluation
    prompts = [Prompt(prompt.messages) for prompt in curated.held_out[: evaluation.prompts]]
    samples_each = max(evaluation.draws, serving.n)
    served_at = temperatures(evaluation, serving.default_temperature)
    old = SamplePlan(prompts, served_at, samples_each, evaluation.max_tokens)
    new = len(prompts) * samples_each * settings.training.checkpoints * max(len(evaluation.candidate_temperatures), 1)
    behaviour = last_behaviour(settings, gateway)
    path = sample_file(evaluation.draws_dir, settings, gateway, serving.adapter, behaviour)
    missing = count_missing(old, path)
    first = "start a new run"
    if run is not None:
        done = [step for step in STEPS if run.result(step) is not None]
        first = f"resume run {run.id} after {done[-1] if done else 'its start'}"
    left_out = ", ".join(f"{count} {reason}" for reason, count in curated.excluded.items() if count)
    return {
        "": first,
        "collect": f"archive {_backlog(gateway.redis)} records that wait in Redis",
        "curate": f"of {curated.total} archived: {len(curated.examples)} winners to train on, {len(curated.held_out)} "
        f"held-out prompts; left out: {left_out or 'none'}",
        "train": f"train {settings.training.model or MODEL_NAME} by {settings.training.objective}, "
        f"{settings.training.checkpoints} checkpoints, if {settings.night.min_examples} winners are new",
        "draw": f"{missing} samples of {serving.adapter or 'the base'} "
        f"({old.size - missing} are stored, for the case that the same model still answers), "
        f"{new} of the checkpoints, on {len(prompts)} prompts",
        "score": "every distinct sample"
        + (", also by the judge" if evaluation.judge_model or evaluation.judge_adapter else ""),
        "gate": f"allow N below {serving.n}, or not"
        + (", and stay no worse than the base was before the first night" if serving.adapter else ""),
        "promote": f"if the gate allows it: publish, load, check the weights, and give the adapter "
        f"{settings.promotion.canary_share:.0%} of traffic",
    }


def _backlog(settings: RedisSettings) -> int:
    """Return the number of records in the stream that are not archived."""
    stream = stream_key(settings.key_prefix)
    try:
        with redis.Redis.from_url(settings.url, **connection_options(settings)) as client:
            if not client.exists(stream):
                return 0
            groups: Any = client.xinfo_groups(stream)
            ours = next((group for group in groups if group["name"] == GROUP.encode()), None)
            length: Any = client.xlen(stream)
            if ours is None or ours.get("lag") is None:
                return int(length)
            return int(ours["lag"]) + int(ours["pending"])
    except redis.RedisError as error:
        raise NightError(f"the journal's stream cannot be read: Redis said {type(error).__name__}") from error
