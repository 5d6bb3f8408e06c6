"""Recognition of the served model by its answers to fixed probes, never by its name.

Samples of earlier nights are reused only if the model that serves now is the one that they were drawn from: the same
weights, quantisation, chat template and sampler, and a base model for training whose files are the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distill.evaluation import behaviours, sample_store
from distill.evaluation.answer_probes import answers_to_probes, same_answers
from distill.nightly.context import Night
from distill.settings import Settings
from distill.training.base_files import base_digest
from gateway.backend.identify import FALLBACK
from gateway.settings import BackendSettings
from gateway.settings import Settings as GatewaySettings

_ANSWERS = "answers"


def sample_file(
    folder: Path, settings: Settings, gateway: GatewaySettings, adapter: str | None, behaviour: str
) -> Path:
    """Return the file in the folder for the samples of an adapter (None: the base) on the served model."""
    names, max_tokens = _names(settings, gateway), settings.evaluation.max_tokens
    return sample_store.sample_file(folder, **names, adapter=adapter, max_tokens=max_tokens, behaviour=behaviour)


def last_behaviour(settings: Settings, gateway: GatewaySettings) -> str:
    """Return the id of the last night's served model, without asking a server; empty if there was none."""
    return behaviours.last_behaviour(settings.evaluation.draws_dir, _ANSWERS, _names(settings, gateway))


def recognise(night: Night, backend: BackendSettings) -> tuple[str, list[str]]:
    """Ask the probes; return the id of the served model, and in words whether it changed since earlier nights.

    Raises:
        EvaluationError: A replica does not answer.
        DataError: A file of behaviours is malformed.
    """
    names = _names(night.settings, night.gateway)
    behaviour = {"files": base_digest(names["base"]), "replicas": asyncio.run(answers_to_probes(backend))}
    found = behaviours.recognise(night.settings.evaluation.draws_dir, _ANSWERS, names, behaviour, _same)
    changed = (
        "what answers is another model than in earlier nights (its weights, quantisation, chat template or sampler, or "
        "the files of the base that trains): all is drawn anew"
    )
    return found.id, [changed] if found.changed else []


def adopt_unprobed_samples(
    night: Night, backend: BackendSettings, adapters: Iterable[str | None], behaviour: str
) -> list[str]:
    """Adopt samples of a release without probes if the served model draws the same ones again; return what was done.

    Raises:
        EvaluationError: The backend does not answer.
        DataError: A file of samples is malformed.
    """
    folder, max_tokens, news = night.settings.evaluation.draws_dir, night.settings.evaluation.max_tokens, []
    for adapter in adapters:
        path = sample_file(folder, night.settings, night.gateway, adapter, behaviour)
        unprobed = sample_file(folder, night.settings, night.gateway, adapter, "")
        if path.exists() or not unprobed.exists():
            continue
        name = adapter or "the base"
        if asyncio.run(sample_store.answers_alike(backend, unprobed, adapter, max_tokens=max_tokens)):
            os.replace(unprobed, path)
            news.append(f"samples of {name} by an earlier release are reused: some were drawn again and are the same")
        else:
            news.append(f"samples of {name} by an earlier release are not reused: some differ when drawn again")
    return news


def _names(settings: Settings, gateway: GatewaySettings) -> dict[str, str]:
    if settings.evaluation.own_servers:
        served_by = "llamacpp"
    elif gateway.backend.kind == "auto":
        served_by = FALLBACK  # earlier releases named their files of samples by this default
    else:
        served_by = gateway.backend.kind
    return {"base": settings.training.model, "served_by": served_by}


def _same(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    return earlier["files"] == now["files"] and same_answers(earlier["replicas"], now["replicas"])
