"""Checkpoints as adapters that the fleet can serve, so that they can be sampled before one of them is chosen.

They are published into the run's own folder. The same weights get the same name when the chosen one is published for
traffic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from distill.errors import PromotionError
from distill.evaluation.sample_store import llama_servers
from distill.nightly.context import Night
from distill.promotion.adapter import Adapter, adapter_named
from distill.promotion.gguf_lora import export_gguf
from distill.promotion.load import load as load_adapter
from distill.promotion.load import unload
from distill.promotion.publish import publish
from distill.promotion.weight_check import check_replicas
from gateway.settings import BackendSettings

log = structlog.get_logger()


def publish_candidates(night: Night, checkpoints: Sequence[Path]) -> dict[str, Adapter]:
    """Publish every checkpoint into the run's folder; return the adapters by the checkpoints' names."""
    folder = night.run.path / "candidates"
    return {path.name: publish_checkpoint(night, path, folder, n_allowed=night.serving.n) for path in checkpoints}


def publish_checkpoint(night: Night, checkpoint: Path, folder: Path, *, n_allowed: int) -> Adapter:
    """Publish a checkpoint as an adapter in the folder; return the existing one if that was done before."""
    serving = serving_adapter(night)
    return publish(
        checkpoint,
        folder,
        model=night.settings.training.model,
        run=night.run.id,
        n_allowed=n_allowed,
        n_base=night.serving.n if serving is None else serving.manifest.n_base,
        rivals=[] if serving is None else [serving],
        created=night.manifest.began,
    )


def serving_adapter(night: Night) -> Adapter | None:
    """Return the adapter that serves, or None if the base does.

    Raises:
        PromotionError: Its folder is missing or was changed, or no night published it.
    """
    name = night.serving.adapter
    return None if name is None else adapter_named(name, night.settings.promotion.adapters_dir)


@contextmanager
def served(night: Night, candidates: Iterable[Adapter]) -> Iterator[BackendSettings]:
    """Serve the candidates and the serving policy: on the fleet, or on llama.cpp servers of the night's own.

    Raises:
        EvaluationError: A server did not start.
        PromotionError: A replica does not serve a candidate, or serves other weights under the serving policy's name.
    """
    settings, backend = night.settings.evaluation, night.gateway.backend
    serving = serving_adapter(night)
    adapters = [*candidates, *([] if serving is None else [serving])]
    if settings.own_servers == 0:
        for adapter in adapters:
            if adapter is not serving:
                asyncio.run(load_adapter(adapter, backend, night.settings.promotion))
            asyncio.run(check_replicas(adapter, backend))
        yield backend
        return
    with llama_servers(
        backend,
        servers=settings.own_servers,
        slots=settings.concurrency,
        context_tokens=settings.context_tokens,
        adapters=[export_gguf(adapter, night.run.path / "candidates" / "gguf") for adapter in adapters],
    ) as own:
        for adapter in adapters:
            first, *_ = asyncio.run(check_replicas(adapter, own))
            night.print(f"{adapter.name} passed its weight check: {first}")
        yield own


def unload_candidates(night: Night, names: Iterable[str]) -> None:
    """Unload candidates that were not chosen from the fleet: they are not sampled again."""
    settings, backend = night.settings, night.gateway.backend
    if settings.evaluation.own_servers:
        return
    for name in names:
        # llama.cpp's replicas would load the file again at their next restart.
        (settings.promotion.gguf_dir / f"{name}.gguf").unlink(missing_ok=True)
        try:
            asyncio.run(unload(name, backend, drain_s=0.0))
        except PromotionError as error:
            log.warning("candidate_not_unloaded", adapter=name, error=str(error))
