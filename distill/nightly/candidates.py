"""The checkpoints as adapters that can be drawn from: published into the run's own folder, loaded, and seen to answer.

The same weights have the same name when the chosen one is published for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import structlog

from distill.errors import PromotionError
from distill.evaluation import draws
from distill.nightly.context import Night
from distill.promotion.adapter import Adapter, adapter_named
from distill.promotion.canary import check_canary
from distill.promotion.export import export_gguf
from distill.promotion.load import load as load_adapter
from distill.promotion.load import unload
from distill.promotion.publish import publish
from gateway.settings import BackendSettings

log = structlog.get_logger()


def prepare(night: Night) -> dict[str, Adapter]:
    """Every checkpoint of this night as an adapter, by the checkpoint's name."""
    found = {}
    for path in map(Path, night.results["train"]["checkpoints"]):
        found[path.name] = publish_checkpoint(night, path, night.run.path / "candidates", n_allowed=night.serving.n)
    return found


def publish_checkpoint(night: Night, checkpoint: Path, folder: Path, *, n_allowed: int) -> Adapter:
    """A checkpoint as an adapter in the folder; the one there is when this was done before."""
    serving = serving_adapter(night)
    return publish(
        checkpoint,
        folder,
        model=night.settings.training.model,
        run=night.run.id,
        n_allowed=n_allowed,
        n_base=night.serving.n if serving is None else serving.manifest.n_base,
        rivals=[] if serving is None else [serving],
        created=datetime.fromisoformat(night.run.manifest["began"]),
    )


def serving_adapter(night: Night) -> Adapter | None:
    """The adapter that serves; None where the base does.

    Raises:
        PromotionError: Its folder is gone or is not what was published, or it was never published by a night.
    """
    name = night.serving.adapter
    return None if name is None else adapter_named(name, night.settings.promotion.adapters_dir)


@contextmanager
def serving(night: Night, candidates: Mapping[str, Adapter]) -> Iterator[BackendSettings]:
    """Where both policies can be drawn from: servers of the night's own, or the fleet with the candidates loaded.

    Raises:
        EvaluationError: A server did not start.
        PromotionError: The fleet does not serve a candidate, or serves something else under the serving policy's name.
    """
    settings, backend = night.settings.evaluation, night.gateway.backend
    if settings.own_servers == 0:
        for adapter in candidates.values():
            asyncio.run(load_adapter(adapter, backend, night.settings.promotion))
            asyncio.run(check_canary(adapter, backend))
        if (old := serving_adapter(night)) is not None:
            asyncio.run(check_canary(old, backend))
        yield backend
        return
    adapters = [*candidates.values(), *([old] if (old := serving_adapter(night)) is not None else [])]
    files = [export_gguf(adapter, night.run.path / "candidates" / "gguf") for adapter in adapters]
    with draws.served(
        backend,
        servers=settings.own_servers,
        slots=settings.concurrency,
        context_tokens=settings.context_tokens,
        adapters=files,
    ) as own:
        for adapter in adapters:
            seen = asyncio.run(check_canary(adapter, own))
            night.say(f"{adapter.name} answers: {seen[0]}")
        yield own


def forget(night: Night, names: Iterable[str]) -> None:
    """Have the fleet drop candidates that were not chosen: nobody draws from them again."""
    settings, backend = night.settings, night.gateway.backend
    if settings.evaluation.own_servers:
        return
    for name in names:
        # What a llama.cpp fleet finds at its next restart.
        (settings.promotion.gguf_dir / f"{name}.gguf").unlink(missing_ok=True)
        try:
            asyncio.run(unload(name, backend, drain_s=0.0))
        except PromotionError as error:
            log.warning("candidate_not_unloaded", adapter=name, error=str(error))
