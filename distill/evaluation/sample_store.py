"""The store of samples: one file a policy, kept over nights, so that nothing is sampled twice.

A file is named after everything that an answer depends on: the base model, what serves it and how that behaves, the
adapter, the token limit. Prompt, temperature and seed are in its lines. So the serving policy is sampled once for as
long as it serves, more prompts or samples extend its file, and no policy reads the file of another.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distill.errors import DataError, EvaluationError
from distill.evaluation.samples import Sample, SamplePlan, SampleSet, read_samples
from distill.evaluation.sampling import sample_missing
from gateway.backend.pool import BackendPool
from gateway.errors import GatewayError
from gateway.files import write_atomically
from gateway.settings import BackendSettings
from gateway.types import Prompt, Sampling

SAMPLE_TIMEOUT_S = 600.0
"""A call may wait for a slot and a shared core; no caller waits for it."""

_CHECKED = 8  # answers that are sampled again to check a file of an earlier release
_DIGEST_BYTES = 6
_UNSAFE_IN_FILE_NAME = re.compile(r"[^A-Za-z0-9_.-]")


def sample_file(
    folder: Path, *, base: str, served_by: str, adapter: str | None, max_tokens: int, behaviour: str = ""
) -> Path:
    """Return the file of a policy's samples: the same one for two policies that give the same answers.

    Args:
        folder: Of the store.
        base: The training's ``model`` setting; empty for the embedded one.
        served_by: The kind of backend.
        adapter: An immutable name; None is the base.
        max_tokens: The limit of an answer.
        behaviour: The id of the servers' answers to the probes (``evaluation.behaviours``); empty for the samples of
            releases before there were probes.
    """
    facts = {"base": base, "served_by": served_by, "adapter": adapter, "max_tokens": max_tokens}
    if behaviour:
        facts["behaviour"] = behaviour
    identity = json.dumps(facts, sort_keys=True).encode()
    digest = hashlib.blake2b(identity, digest_size=_DIGEST_BYTES).hexdigest()
    # The digest identifies the policy; the name is for people. An adapter may have any name: it must not be a path.
    return folder / f"{_UNSAFE_IN_FILE_NAME.sub('_', adapter or 'base')[:100]}-{digest}.jsonl"


async def extend(
    backend: BackendSettings,
    plan: SamplePlan,
    path: Path,
    *,
    concurrency: int,
    on_sample: Callable[[Sample], None] = lambda _: None,
) -> set[str]:
    """Sample what the store lacks of a plan; return the keys of prompts that the backend refuses as invalid.

    Raises:
        DataError: The store is malformed or cannot be written.
        EvaluationError: The backend did not give an answer; what was sampled before is kept.
    """
    refused: set[str] = set()
    patient = backend.model_copy(update={"request_timeout_s": max(backend.request_timeout_s, SAMPLE_TIMEOUT_S)})
    try:
        async with BackendPool(patient) as pool:
            await sample_missing(pool, plan, path, concurrency=concurrency, on_sample=on_sample, refused=refused)
    except GatewayError as error:
        raise EvaluationError(f"sampling stopped: {error.message}") from error
    return refused


def count_missing(plan: SamplePlan, path: Path) -> int:
    known = {sample.place for sample in read_samples(path)} if path.exists() else set()
    return sum((prompt.key, temperature, index) not in known for prompt, temperature, index in plan.places())


def read_sets(plan: SamplePlan, path: Path) -> dict[float, SampleSet]:
    """Read the sample set of each temperature, in the plan's order of prompts.

    Raises:
        DataError: A sample is missing.
    """
    by_place = {sample.place: sample for sample in read_samples(path)}
    try:
        return {
            temperature: [
                [by_place[prompt.key, temperature, index] for index in range(plan.count)] for prompt in plan.prompts
            ]
            for temperature in plan.temperatures
        }
    except KeyError:
        raise DataError(f"{path} lacks {count_missing(plan, path)} samples") from None


async def answers_alike(backend: BackendSettings, path: Path, adapter: str | None, *, max_tokens: int) -> bool:
    """Sample a few answers of a file again, from their own seeds; return True if at least half are the same.

    Other weights, another quantisation, template or sampler soon answer otherwise. A server that ignores seeds does
    too: then this is False although nothing changed.

    Raises:
        DataError: The file is malformed.
        EvaluationError: The backend does not answer.
    """
    every = [sample for sample in read_samples(path) if sample.text]
    some = every[:: max(1, len(every) // _CHECKED)][:_CHECKED]
    try:
        async with BackendPool(backend) as pool:
            texts = await asyncio.gather(*(_sample_again(pool, known, adapter, max_tokens) for known in some))
    except GatewayError as error:
        raise EvaluationError(f"sampling stopped: {error.message}") from error
    same = sum(known.text == text for known, text in zip(some, texts, strict=True))
    return bool(some) and 2 * same >= len(some)


async def _sample_again(pool: BackendPool, known: Sample, adapter: str | None, max_tokens: int) -> str:
    sampling = Sampling(temperature=known.temperature, max_tokens=max_tokens)
    prompt = Prompt(messages=known.prompt.messages, sampling=sampling, adapter=adapter)
    return (await pool.complete(prompt, seed=known.seed, replica=pool.choose_replica())).text or ""


def adopt(source: Path, target: Path, *, max_tokens: int) -> int:
    """Copy samples that `python -m distill sample` made into the store, to the policy that ``target`` belongs to.

    Nothing is copied twice, and the source may still grow: whole lines count.

    Args:
        source: A file of samples.
        target: The policy's file in the store.
        max_tokens: The limit they must have been sampled with.

    Returns:
        How many were new.

    Raises:
        DataError: The source is malformed, or was sampled with another limit.
    """
    kept = read_samples(target) if target.exists() else []
    known = {sample.place for sample in kept}
    new = list({sample.place: sample for sample in read_samples(source) if sample.place not in known}.values())
    for sample in new:
        at_limit = sample.finish_reason == "length" and sample.completion_tokens < max_tokens
        if at_limit or sample.completion_tokens > max_tokens:
            raise DataError(f"{source} was not sampled with {max_tokens} tokens at most")
    if new:
        write_atomically(target, b"".join(sample.to_line() for sample in [*kept, *new]))
    return len(new)


@contextmanager
def llama_servers(
    backend: BackendSettings, *, servers: int, slots: int, context_tokens: int, adapters: Sequence[Path]
) -> Iterator[BackendSettings]:
    """Start llama.cpp servers of the night's own, one thread each; they end with the block.

    Args:
        backend: The fleet's settings, of which all but kind and URLs hold.
        servers: How many to start.
        slots: Samples that are drawn at once, over all servers.
        context_tokens: Prompt and answer of one sample together.
        adapters: GGUF files that each server loads.

    Raises:
        EvaluationError: A server did not start.
    """
    from gateway.embedded.llama import LlamaServer

    with ExitStack() as running:
        try:
            urls = [
                running.enter_context(
                    LlamaServer(
                        slots=-(-slots // servers),
                        context_tokens=context_tokens,
                        threads=1,
                        adapters=adapters,
                    )
                ).url
                for _ in range(servers)
            ]
        except GatewayError as error:
            raise EvaluationError(error.message) from error
        yield backend.model_copy(update={"kind": "llamacpp", "urls": tuple(urls)})
