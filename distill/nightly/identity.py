"""Which model answers tonight: found by what its servers say to fixed probes, never by its name.

Draws of earlier nights are used again only if they were drawn from what answers now: the same weights, quantisation,
chat template and sampler, and a base model for training whose files are the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.evaluation.answer_probes import answers_to_probes, same_answers
from distill.evaluation.behaviours import last_met, meet
from distill.evaluation.draws import Drawer, redrawn_alike
from distill.nightly.context import Night
from distill.settings import Settings
from distill.training.base_files import base_digest
from gateway.backend.identify import FALLBACK
from gateway.settings import BackendSettings
from gateway.settings import Settings as GatewaySettings

_ANSWERS = "answers"


def drawer(settings: Settings, gateway: GatewaySettings, adapter: str | None, behaviour: str) -> Drawer:
    """Return the policy that draws: an adapter, or None for the base, on what serves tonight."""
    names = _names(settings, gateway)
    return Drawer(names["base"], names["served_by"], adapter, settings.evaluation.max_tokens, behaviour)


def last_behaviour(settings: Settings, gateway: GatewaySettings) -> str:
    """The id of the behaviour that the last night met, for a plan that asks nobody; empty where none was met."""
    return last_met(settings.evaluation.draws_dir, _ANSWERS, _names(settings, gateway))


def behaviour_tonight(night: Night, backend: BackendSettings) -> tuple[str, list[str]]:
    """Have the probes answered; returns the id of the behaviour, and in words what changed since earlier nights.

    Raises:
        EvaluationError: A replica does not answer.
        DataError: A file of behaviours is malformed.
    """
    names = _names(night.settings, night.gateway)
    behaviour = {"files": base_digest(names["base"]), "replicas": asyncio.run(answers_to_probes(backend))}
    met = meet(night.settings.evaluation.draws_dir, _ANSWERS, names, behaviour, _same)
    changed = (
        "what answers is another model than in earlier nights (its weights, quantisation, chat template or sampler, or "
        "the files of the base that trains): all is drawn anew"
    )
    return met.id, [changed] if met.changed else []


def take_over(night: Night, backend: BackendSettings, adapters: Iterable[str | None], behaviour: str) -> list[str]:
    """Make draws of a release without probes this behaviour's own, if they come out the same; in words what was done.

    Raises:
        EvaluationError: The backend does not answer.
        DataError: A file of draws is malformed.
    """
    folder, told = night.settings.evaluation.draws_dir, []
    for adapter in adapters:
        path = drawer(night.settings, night.gateway, adapter, behaviour).file(folder)
        unprobed = drawer(night.settings, night.gateway, adapter, "").file(folder)
        if path.exists() or not unprobed.exists():
            continue
        told.append(_taken_over(night, backend, adapter, unprobed, path))
    return told


def _taken_over(night: Night, backend: BackendSettings, adapter: str | None, unprobed: Path, path: Path) -> str:
    max_tokens, name = night.settings.evaluation.max_tokens, adapter or "the base"
    if asyncio.run(redrawn_alike(backend, unprobed, adapter, max_tokens=max_tokens)):
        os.replace(unprobed, path)
        return f"draws of {name} by an earlier release are taken over: some were drawn again and are the same"
    return f"draws of {name} by an earlier release are not taken over: it answers otherwise now, all is drawn anew"


def _names(settings: Settings, gateway: GatewaySettings) -> dict[str, str]:
    if settings.evaluation.own_servers:
        served_by = "llamacpp"
    elif gateway.backend.kind == "auto":
        served_by = FALLBACK  # the default of earlier releases, by which their draws are named
    else:
        served_by = gateway.backend.kind
    return {"base": settings.training.model, "served_by": served_by}


def _same(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    return earlier["files"] == now["files"] and same_answers(earlier["replicas"], now["replicas"])
