"""Read the files in docker/ as their tools do."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
IMAGES = ("gateway", "reward", "distill")

# ${NAME}, ${NAME:-default}, ${NAME:?message}; $$ is a dollar.
_VARIABLE = re.compile(r"\$\$|\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile and its arguments, continued lines joined."""

    word: str
    rest: str


@cache
def dockerfile(image: str) -> tuple[Instruction, ...]:
    """Return the instructions of an image's Dockerfile."""
    text = re.sub(r"\\\n", "", (DOCKER / f"{image}.Dockerfile").read_text())
    lines = [line.partition(" ") for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return tuple(Instruction(word, rest.strip()) for word, _, rest in lines)


def final_stage(image: str) -> list[Instruction]:
    """Return the stage that becomes the image."""
    instructions = dockerfile(image)
    last = max(index for index, line in enumerate(instructions) if line.word == "FROM")
    return list(instructions[last:])


def image_environment(image: str) -> dict[str, str]:
    """Return the variables that the image sets."""
    pairs = [part for line in final_stage(image) if line.word == "ENV" for part in shlex.split(line.rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def env_file(path: Path) -> dict[str, str]:
    """Return the assignments of an env file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def profiles() -> list[str]:
    """Return the profiles of compose.yaml."""
    return sorted(path.stem for path in (DOCKER / "profiles").glob("*.env"))


def compose(profile: str) -> dict[str, Any]:
    """Return compose.yaml as compose runs it: variables filled in, without services of other profiles."""
    secrets = {name: value or f"{name}-of-the-test" for name, value in env_file(DOCKER / ".env.example").items()}
    known = secrets | env_file(DOCKER / "profiles" / f"{profile}.env")
    model: dict[str, Any] = _filled(yaml.safe_load((DOCKER / "compose.yaml").read_text()), known)
    wanted = set(known["COMPOSE_PROFILES"].split(","))
    model["services"] = {
        name: service
        for name, service in model["services"].items()
        if "profiles" not in service or wanted & set(service["profiles"])
    }
    return model


def variables_of_compose() -> set[str]:
    """Return the variables of compose.yaml that have no default."""
    found = _VARIABLE.finditer((DOCKER / "compose.yaml").read_text())
    return {match["name"] for match in found if match["name"] and match["kind"] != "-"}


def _filled(value: Any, known: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, known) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return "$"
        default = match["rest"] if match["kind"] == "-" else None
        given = known.get(name) or default
        if given is None and (name not in known or match["kind"] == "?"):
            raise KeyError(f"{name} is set nowhere")
        return given or ""

    return _VARIABLE.sub(fill, value)


@cache
def manifests() -> tuple[dict[str, Any], ...]:
    """Return every object of the kustomization's resources."""
    folder = DOCKER / "k8s"
    return tuple(
        document
        for name in kustomization()["resources"]
        for document in yaml.safe_load_all((folder / name).read_text())
    )


@cache
def kustomization() -> dict[str, Any]:
    """docker/k8s/kustomization.yaml."""
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "k8s" / "kustomization.yaml").read_text())
    return loaded


def config_maps() -> dict[str, dict[str, str]]:
    """Return the config maps that kustomize makes."""
    return {
        entry["name"]: dict(pair.split("=", 1) for pair in entry["literals"])
        for entry in kustomization()["configMapGenerator"]
    }


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    """Return the manifests of a kind by their names."""
    return {item["metadata"]["name"]: item for item in manifests() if item["kind"] == kind}


def pods() -> dict[str, dict[str, Any]]:
    """Return every pod template by its owner's name."""
    found = {
        name: item["spec"]["template"] for kind in ("Deployment", "StatefulSet") for name, item in of_kind(kind).items()
    }
    return found | {name: item["spec"]["jobTemplate"]["spec"]["template"] for name, item in of_kind("CronJob").items()}


@cache
def dashboard() -> dict[str, Any]:
    """The Grafana dashboard."""
    loaded: dict[str, Any] = json.loads((DOCKER / "grafana" / "dashboards" / "ratchet.json").read_text())
    return loaded


@cache
def rules() -> list[dict[str, Any]]:
    """Return the groups of the alert rules."""
    loaded: list[dict[str, Any]] = yaml.safe_load((DOCKER / "prometheus" / "rules.yaml").read_text())["groups"]
    return loaded
