"""Sampling: many answers to each prompt at several temperatures, appended to a file that a later run continues.

Prompt by prompt, all temperatures of a prompt together: what is there when a run ends is balanced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import structlog

from distill.evaluation.prompts import Prompt
from distill.evaluation.samples import Sample, SamplePlan, read_samples
from distill.evaluation.workers import run_workers
from distill.run_dir import appending
from gateway.errors import BackendError, BackendRejected
from gateway.types import Backend, Sampling
from gateway.types import Prompt as BackendPrompt

_ATTEMPTS = 3
_RETRY_WAIT_S = 1.0

log = structlog.get_logger()


async def sample_missing(
    backend: Backend,
    plan: SamplePlan,
    path: Path,
    *,
    concurrency: int,
    on_sample: Callable[[Sample], None] = lambda _: None,
    refused: set[str] | None = None,
) -> int:
    """Sample what the file does not hold yet, appending each answer as it comes.

    Args:
        backend: Where answers come from.
        plan: What to sample.
        path: JSON lines; made when missing.
        concurrency: Calls in flight; the backend's slots, or a few more.
        on_sample: Called with each new sample.
        refused: Takes the keys of prompts that the backend refuses as invalid (too long, …), which are then left
            out; without it the first such refusal ends the run.

    Returns:
        How many samples were added.

    Raises:
        DataError: The file holds something else, or cannot be written.
        BackendError: A call failed repeatedly; what was sampled before it is in the file.
    """
    with appending(path) as sink:
        known = {sample.place for sample in read_samples(path)}
        missing = (place for place in plan.places() if (place[0].key, *place[1:]) not in known)
        added = 0

        async def worker() -> None:
            nonlocal added
            for prompt, temperature, index in missing:
                if refused and prompt.key in refused:
                    continue
                try:
                    new = await _sample(backend, plan, prompt, temperature, index)
                except BackendRejected:
                    if refused is None:
                        raise
                    refused.add(prompt.key)
                    continue
                sink.write(new.to_line())
                sink.flush()
                added += 1
                on_sample(new)

        await run_workers(worker, concurrency, BackendError, OSError)
    log.info("sampling_finished", added=added, known=len(known))
    return added


async def _sample(backend: Backend, plan: SamplePlan, prompt: Prompt, temperature: float, index: int) -> Sample:
    sampling = Sampling(temperature=temperature, max_tokens=plan.max_tokens)
    asked = BackendPrompt(messages=prompt.messages, sampling=sampling, adapter=plan.adapter)
    seed = plan.seed_of(prompt, temperature, index)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            answer = await backend.complete(asked, seed=seed, replica=backend.choose_replica())
            break
        except BackendError as error:
            log.warning("sample_failed", attempt=attempt, reason=error.message)
            if attempt == _ATTEMPTS or isinstance(error, BackendRejected):
                raise
            await asyncio.sleep(_RETRY_WAIT_S * attempt)
    return Sample(
        prompt=prompt,
        temperature=temperature,
        index=index,
        seed=seed,
        text=answer.text or "",
        finish_reason=answer.finish_reason,
        completion_tokens=answer.completion_tokens,
    )
