"""``--dry-run``: what a night would do now, in numbers. Changes nothing, here or in Redis."""

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
from distill.evaluation import draws
from distill.evaluation.sample import Design
from distill.nightly import identity
from distill.nightly.context import STEPS
from distill.nightly.manifest import known_policies
from distill.nightly.start import check, check_adapter, rolled_back, unfinished
from distill.nightly.steps.measure import question_of, temperatures
from distill.settings import Settings
from gateway.embedded.llama import MODEL_NAME
from gateway.journal.stream import stream_key
from gateway.policy import Policy
from gateway.redis_client import connection_options
from gateway.settings import RedisSettings
from gateway.settings import Settings as GatewaySettings


def show(settings: Settings, gateway: GatewaySettings, console: Console) -> None:
    """Print the plan.

    Raises:
        SettingsError: The night could not come to its end with these settings.
        NightError: Redis does not answer.
        DataError: The archive cannot be read, or the serving adapter's folder is not there.
    """
    check(settings, gateway)
    with tempfile.TemporaryDirectory() as folder:  # so that not even a copy of the policy is written
        known = asyncio.run(known_policies(gateway, folder=Path(folder)))
    check_adapter(known[0], settings)
    archive = Archive(settings.dataset.archive_dir)
    curated = curate(
        archive.completions(), archive.feedback(), settings.dataset, rolled_back=rolled_back(settings, known)
    )
    table = Table("step", "would", title="A night now", title_justify="left")
    for step, words in _rows(settings, gateway, known[0], curated).items():
        table.add_row(step, words)
    console.print(table)


def _rows(settings: Settings, gateway: GatewaySettings, serving: Policy, curated: Curated) -> dict[str, str]:
    run = unfinished(settings)
    evaluation = settings.evaluation
    temperature = serving.default_temperature
    asked = [question_of(prompt.messages) for prompt in curated.held_out[: evaluation.prompts]]
    drawer = identity.drawer(settings, gateway, serving.adapter, identity.last_behaviour(settings, gateway))
    draws_each = max(evaluation.draws, serving.n)
    old = Design(asked, temperatures(evaluation, temperature), draws_each, evaluation.max_tokens)
    new = len(asked) * draws_each * settings.training.checkpoints * max(len(evaluation.candidate_temperatures), 1)
    missing = draws.missing(old, drawer.file(evaluation.draws_dir))
    first = "begin a new run"
    if run is not None:
        done = [step for step in STEPS if run.result(step) is not None]
        first = f"take up run {run.id} again, after {done[-1] if done else 'its start'}"
    left_out = ", ".join(f"{count} {reason}" for reason, count in curated.excluded.items() if count)
    return {
        "": first,
        "collect": f"archive {_backlog(gateway.redis)} records that wait in Redis",
        "curate": f"of {curated.total} archived: {len(curated.examples)} winners may train, {len(curated.held_out)} "
        f"prompts measure; left out: {left_out or 'none'}",
        "train": f"teach {settings.training.model or MODEL_NAME} by {settings.training.objective}, "
        f"{settings.training.checkpoints} checkpoints, if {settings.night.min_examples} winners are new",
        "draw": f"{missing} answers from {serving.adapter or 'the base'} "
        f"({old.size - missing} are there, if the same model still answers), "
        f"{new} from the checkpoints, on {len(asked)} prompts",
        "score": "every distinct answer"
        + (", and judge it" if evaluation.judge_model or evaluation.judge_adapter else ""),
        "gate": f"allow N below {serving.n}, or not"
        + (", and keep what the base was before the first night" if serving.adapter else ""),
        "promote": f"only then: publish, load, check, and give it {settings.promotion.canary_share:.0%} of traffic",
    }


def _backlog(settings: RedisSettings) -> int:
    """Records in the stream that no night has archived."""
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
