"""The store of draws: one file a policy, kept over nights, so that nothing is drawn twice.

A file is named after everything that an answer depends on: the base model, what serves it and how that behaves, the
adapter, the token limit. Prompt, temperature and seed are in its lines. So the serving policy is drawn once for as long
as it serves, more prompts or draws extend its file, and a file of another policy is never taken for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.errors import DataError, EvaluationError
from distill.evaluation.sample import Design, Draw, draw, line_of, read_draws
from gateway.backend.client import BackendPool
from gateway.errors import GatewayError
from gateway.files import write_atomically
from gateway.settings import BackendSettings
from gateway.types import Prompt, Sampling

DRAW_TIMEOUT_S = 600.0
"""A draw may wait for a slot and a shared core; nobody waits for it."""

_CHECKED = 8  # answers that are drawn again to check a file of an earlier release
_DIGEST_BYTES = 6
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class Drawer:
    """The policy that answers: two that are equal give the same answers.

    ``base`` is the training's ``model`` setting: empty for the embedded one. ``adapter`` is an immutable name, None the
    base. ``behaviour`` is the id of what the servers said to the probes (``evaluation.behaviours``); releases before
    there were probes knew none, which is empty here.
    """

    base: str
    served_by: str
    adapter: str | None
    max_tokens: int
    behaviour: str = ""

    def file(self, folder: Path) -> Path:
        """Return the file of its draws."""
        facts = {name: value for name, value in asdict(self).items() if name != "behaviour" or value}
        identity = json.dumps(facts, sort_keys=True).encode()
        digest = hashlib.blake2b(identity, digest_size=_DIGEST_BYTES).hexdigest()
        # The digest tells files apart; the name is for people, and a policy may name anything: it must not be a path.
        return folder / f"{_NO_NAME.sub('_', self.adapter or 'base')[:100]}-{digest}.jsonl"


@dataclass(frozen=True, slots=True)
class Added:
    """What drawing took: draws and tokens that are new, and questions (by key) that the backend refuses as invalid."""

    draws: int
    tokens: int
    refused: frozenset[str]


async def draw_design(
    backend: BackendSettings,
    design: Design,
    path: Path,
    *,
    concurrency: int,
    on_draw: Callable[[int], None] = lambda _: None,
) -> Added:
    """Draw what the store lacks of a design.

    Raises:
        DataError: The store is malformed or cannot be written.
        EvaluationError: The backend did not give an answer; what was drawn before is kept.
    """
    tokens = 0
    refused: set[str] = set()

    def count(new: Draw) -> None:
        nonlocal tokens
        tokens += new.completion_tokens
        on_draw(1)

    patient = backend.model_copy(update={"request_timeout_s": max(backend.request_timeout_s, DRAW_TIMEOUT_S)})
    try:
        async with BackendPool(patient) as pool:
            added = await draw(pool, design, path, concurrency=concurrency, on_draw=count, refused=refused)
    except GatewayError as error:
        raise EvaluationError(f"drawing stopped: {error.message}") from error
    return Added(added, tokens, frozenset(refused))


def missing(design: Design, path: Path) -> int:
    """How many draws of a design the store lacks."""
    known = {past.cell for past in read_draws(path)} if path.exists() else set()
    return sum((question.key, temperature, index) not in known for question, temperature, index in design.cells())


def drawn(design: Design, path: Path) -> dict[float, list[list[Draw]]]:
    """The draws of a design by temperature, then question in the design's order, then index.

    Raises:
        DataError: A draw is missing.
    """
    by_cell = {past.cell: past for past in read_draws(path)}
    try:
        return {
            temperature: [
                [by_cell[question.key, temperature, index] for index in range(design.draws)]
                for question in design.questions
            ]
            for temperature in design.temperatures
        }
    except KeyError:
        raise DataError(f"{path} lacks {missing(design, path)} draws") from None


async def redrawn_alike(backend: BackendSettings, path: Path, adapter: str | None, *, max_tokens: int) -> bool:
    """Draw a few answers of a file again, from their own seeds, and see whether most are the same.

    Other weights, another quantisation, template or sampler soon say something else. A server that ignores seeds does
    too: then this is False although nothing changed.

    Raises:
        DataError: The file is malformed.
        EvaluationError: The backend does not answer.
    """
    every = [each for each in read_draws(path) if each.text]
    some = every[:: max(1, len(every) // _CHECKED)][:_CHECKED]
    try:
        async with BackendPool(backend) as pool:
            texts = await asyncio.gather(*(_again(pool, each, adapter, max_tokens) for each in some))
    except GatewayError as error:
        raise EvaluationError(f"drawing stopped: {error.message}") from error
    same = sum(each.text == text for each, text in zip(some, texts, strict=True))
    return bool(some) and 2 * same >= len(some)


async def _again(pool: BackendPool, known: Draw, adapter: str | None, max_tokens: int) -> str:
    sampling = Sampling(temperature=known.temperature, max_tokens=max_tokens)
    prompt = Prompt(messages=known.question.messages, sampling=sampling, adapter=adapter)
    return (await pool.complete(prompt, seed=known.seed, replica=pool.choose_replica())).text or ""


def adopt(source: Path, target: Path, *, max_tokens: int) -> int:
    """Take over draws that `python -m distill sample` made, of the policy that ``target`` belongs to.

    Nothing is taken twice, and the source may still grow: whole lines count.

    Args:
        source: A file of draws.
        target: The policy's file in the store.
        max_tokens: The limit they must have been drawn with.

    Returns:
        How many were new.

    Raises:
        DataError: The source is malformed, or was drawn with another limit.
    """
    kept = read_draws(target) if target.exists() else []
    known = {past.cell for past in kept}
    new = list({each.cell: each for each in read_draws(source) if each.cell not in known}.values())
    for each in new:
        at_limit = each.finish_reason == "length" and each.completion_tokens < max_tokens
        if at_limit or each.completion_tokens > max_tokens:
            raise DataError(f"{source} was not drawn with {max_tokens} tokens at most")
    if new:
        write_atomically(target, b"".join(map(line_of, [*kept, *new])))
    return len(new)


@contextmanager
def served(
    backend: BackendSettings, *, servers: int, slots: int, context_tokens: int, adapters: Sequence[Path]
) -> Iterator[BackendSettings]:
    """Where to draw: the fleet as it is, or llama.cpp servers of the night's own, ended with the block.

    Args:
        backend: The fleet's.
        servers: How many of its own the night starts, one thread each; 0: the fleet's backend draws.
        slots: Draws that run at once, over all of them.
        context_tokens: Prompt and answer of one draw together.
        adapters: GGUF files that the night's own servers load.

    Raises:
        EvaluationError: A server did not start.
    """
    if servers == 0:
        yield backend
        return
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
