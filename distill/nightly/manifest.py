"""The manifest of a night: settings, versions, seeds and the serving policy, written before the first step.

A resumed night is held to its manifest: with other settings its steps would not fit together.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

import gateway
from distill.errors import DataError, NightError, RunMismatch
from distill.promotion import policies
from distill.run_dir import RunDir
from distill.settings import Settings
from gateway.errors import PolicyError
from gateway.policy import Policy, PolicyStore
from gateway.settings import Settings as GatewaySettings

_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "numpy", "scipy", "xllamacpp")
_SECRETS = ("api_key", "url", "urls", "endpoint", "username", "password", "key_file", "keys_file")
_FIXED_GROUPS = ("dataset", "training", "evaluation")
_FIXED = (("night", "min_examples"),)
# Settings of the fixed groups that do not change results: they may differ between two attempts at one night.
_FREE = {("dataset", "keep_days"), ("dataset", "claim_idle_s"), ("evaluation", "concurrency")}
_REPAIR = "restore it, or move the run's folder away and run again"
_REPOSITORY = Path(__file__).parents[2]


class Manifest(BaseModel):
    """The fields of a manifest that later steps read."""

    began: datetime
    commit: str | None
    versions: dict[str, str]
    settings: dict[str, dict[str, Any]]
    gateway: dict[str, Any] = {}
    serving: Policy
    rolled_back: list[str] = []


def new_manifest(
    settings: Settings, gateway_settings: GatewaySettings, serving: Policy, *, rolled_back: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the manifest of a night that starts now, without keys, passwords and URLs."""
    return {
        "began": datetime.now(UTC).isoformat(),
        "commit": commit(),
        "versions": versions(),
        "settings": settings.model_dump(mode="json", exclude={"promotion": {"load_command"}}),
        "gateway": _without_secrets(gateway_settings.model_dump(mode="json")),
        "seeds": {"training": settings.training.seed, "draws": 0, "bootstrap": 0},
        "serving": serving.model_dump(mode="json"),
        "rolled_back": sorted(rolled_back),
    }


def read_manifest(run: RunDir) -> Manifest:
    """Read a run's manifest.

    Raises:
        RunMismatch: It is damaged; says where, and what to do.
    """
    check_readable(run)
    try:
        return Manifest.model_validate(run.manifest)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise RunMismatch(f"the manifest of run {run.id} is damaged ({where}: {problem['msg']}): {_REPAIR}") from None


def check_readable(run: RunDir) -> None:
    """Refuse a run whose manifest is not a JSON object.

    Raises:
        RunMismatch: Names the run, and says what to do.
    """
    try:
        _ = run.manifest
    except DataError as error:
        raise RunMismatch(f"{error}: {_REPAIR}") from error


def check_settings(run: RunDir, settings: Settings, gateway_settings: GatewaySettings) -> None:
    """Refuse to resume a run with other settings than it was begun with.

    Raises:
        RunMismatch: Names the settings that differ, or says that the manifest is damaged.
    """
    manifest = read_manifest(run)
    now, defaults = _values(settings), _values(Settings.model_construct())
    differing = [
        f"{group}.{name}"
        for group, name in [*((group, name) for group in _FIXED_GROUPS for name in now[group]), *_FIXED]
        # A setting that the release of that run did not have had its default.
        if (group, name) not in _FREE
        and now[group][name] != manifest.settings.get(group, {}).get(name, defaults[group][name])
    ]
    redis, key_prefix = manifest.gateway.get("redis"), gateway_settings.redis.key_prefix
    if isinstance(redis, dict) and redis.get("key_prefix", key_prefix) != key_prefix:
        differing.append("GATEWAY_REDIS__KEY_PREFIX")
    if differing:
        raise RunMismatch(
            f"run {run.id} was begun with other settings ({', '.join(differing)}): "
            "set them back, or begin anew with --new"
        )


def _values(settings: Settings) -> dict[str, dict[str, object]]:
    """Return all values by group, with the constants that were settings in earlier releases."""
    return {name: group.model_dump(mode="json") | group.constants() for name, group in settings}


async def serving_policy(settings: GatewaySettings) -> Policy:
    """Return the policy that serves now.

    Raises:
        NightError: Redis does not answer.
    """
    return (await known_policies(settings))[0]


async def known_policies(settings: GatewaySettings, *, folder: Path | None = None) -> list[Policy]:
    """Return every policy in the history, the one that serves now first.

    Args:
        settings: The gateway's: Redis, and the policy before any was published.
        folder: Where the last known good policy is kept; unset: the gateway's own folder.

    Raises:
        NightError: Redis does not answer, so the serving policy is not known.
    """
    try:
        async with PolicyStore.opened(settings, folder=folder) as store:
            if store.last_error is not None:
                raise NightError(f"the serving policy cannot be read: Redis said {store.last_error}")
            return await policies.known_policies(store)
    except PolicyError as error:
        raise NightError(f"the serving policy cannot be read: {error}") from error


def versions() -> dict[str, str]:
    """Return the versions of this program, Python and the packages that results depend on."""
    found = {"ratchet": gateway.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the code's commit, with a plus if the work tree differs from it; None outside a repository."""
    try:
        head, status = (
            subprocess.run(
                ["git", "-C", str(_REPOSITORY), *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if status else "")


def _without_secrets(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_secrets(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in _SECRETS
    }
