"""Draws many answers to each prompt at several temperatures, into a file that a later run continues.

Prompt by prompt, every temperature of a prompt together: whatever was drawn when a run ends is balanced.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from distill.errors import DataError
from distill.run_dir import appending, whole_lines
from gateway.errors import BackendError, BackendRejected
from gateway.types import Backend, Message, Prompt, Sampling

_SEED_BITS = 32  # what every backend takes
_ATTEMPTS = 3
_RETRY_WAIT_S = 1.0

Cell = tuple[str, float, int]
"""Which draw: the question's key, the temperature, the index."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the kind of task it sets.

    ``prompt`` is the first user message; ``turns`` is the whole conversation, None where it is that message alone.
    """

    kind: str
    prompt: str
    turns: Sequence[Message] | None = None

    @property
    def messages(self) -> list[Message]:
        """The conversation."""
        return [{"role": "user", "content": self.prompt}] if self.turns is None else list(self.turns)

    @property
    def key(self) -> str:
        """What equal conversations share: the prompt itself where there is nothing else, JSON of all turns else."""
        return self.prompt if self.turns is None else json.dumps(self.turns, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Draw:
    """One answer: a line of the file of draws. ``turns`` as in ``Question``."""

    prompt: str
    kind: str
    temperature: float
    index: int
    seed: int
    text: str
    finish_reason: str
    completion_tokens: int
    turns: Sequence[Message] | None = None

    @property
    def question(self) -> Question:
        """What it answers."""
        return Question(self.kind, self.prompt, self.turns)

    @property
    def cell(self) -> Cell:
        """Its place: no two draws of a file share it."""
        return self.question.key, self.temperature, self.index


@dataclass(frozen=True, slots=True)
class Design:
    """What to draw: ``draws`` answers to each question at each temperature, of ``max_tokens`` at most.

    ``adapter`` answers; None is the base.
    """

    questions: Sequence[Question]
    temperatures: Sequence[float]
    draws: int
    max_tokens: int
    seed: int = 0
    adapter: str | None = None

    @property
    def size(self) -> int:
        """How many draws that is."""
        return len(self.questions) * len(self.temperatures) * self.draws

    def cells(self) -> Iterator[tuple[Question, float, int]]:
        """Every (question, temperature, index), question by question; temperatures take turns within one."""
        for question in self.questions:
            for index in range(self.draws):
                for temperature in self.temperatures:
                    yield question, temperature, index

    def draw_seed(self, question: Question, temperature: float, index: int) -> int:
        """A seed that depends on the draw's place alone, so that a resumed run draws what an unbroken one would."""
        place = json.dumps([self.seed, question.key, temperature, index]).encode()
        # One bit less than there are: llama.cpp takes the highest seed to mean "random".
        return int.from_bytes(hashlib.blake2b(place, digest_size=_SEED_BITS // 8).digest()) >> 1


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """The first ``count`` questions, taking one of each kind in turn."""
    by_kind: dict[str, list[Question]] = {}
    for question in questions:
        by_kind.setdefault(question.kind, []).append(question)
    rounds = range(max(map(len, by_kind.values()), default=0))
    turns = (kind[turn] for turn in rounds for kind in by_kind.values() if turn < len(kind))
    return [question for question, _ in zip(turns, range(count), strict=False)]


def read_draws(path: Path) -> list[Draw]:
    """Every whole line of the file; a last line that a killed run left unfinished is no draw.

    Raises:
        DataError: The file cannot be read, or a line is no draw.
    """
    draws: list[Draw] = []
    try:
        for line in whole_lines(path):
            draws.append(Draw(**json.loads(line)))
    except (ValueError, TypeError) as error:
        number = len(draws) + 1
        raise DataError(f"{path}, line {number} is no draw: remove the line, and it is drawn again") from error
    return draws


async def draw(
    backend: Backend,
    design: Design,
    path: Path,
    *,
    concurrency: int,
    on_draw: Callable[[Draw], None] = lambda _: None,
    refused: set[str] | None = None,
) -> int:
    """Draw what the file does not hold yet, appending each answer as it comes.

    Args:
        backend: Where answers come from.
        design: What to draw.
        path: JSON lines; made when missing.
        concurrency: Draws in flight; the backend's slots, or a few more.
        on_draw: Told of each new draw.
        refused: Takes the keys of questions that the backend refuses as invalid (too long, …), which are then left
            out; without it the first such refusal ends the run.

    Returns:
        How many draws were added.

    Raises:
        DataError: The file holds something else, or cannot be written.
        BackendError: A draw failed repeatedly; what was drawn before it is in the file.
    """
    with appending(path) as sink:
        known = {past.cell for past in read_draws(path)}
        missing = (cell for cell in design.cells() if (cell[0].key, cell[1], cell[2]) not in known)
        added = 0

        async def worker() -> None:
            nonlocal added
            for question, temperature, index in missing:
                if refused and question.key in refused:
                    continue
                try:
                    new = await _draw_one(backend, design, question, temperature, index)
                except BackendRejected:
                    if refused is None:
                        raise
                    refused.add(question.key)
                    continue
                sink.write(line_of(new))
                sink.flush()
                added += 1
                on_draw(new)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(worker())
        except ExceptionGroup as errors:  # not except*: early Python 3.11 wraps what is raised there once more
            expected = errors.subgroup((BackendError, OSError))
            if expected is None:
                raise
            raise expected.exceptions[0] from errors
    log.info("draws_finished", added=added, known=len(known))
    return added


def line_of(draw: Draw) -> bytes:
    """The draw as a line of a file of draws. A lone surrogate, which UTF-8 cannot hold, becomes a question mark."""
    fields = {name: value for name, value in asdict(draw).items() if name != "turns" or value is not None}
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


async def _draw_one(backend: Backend, design: Design, question: Question, temperature: float, index: int) -> Draw:
    sampling = Sampling(temperature=temperature, max_tokens=design.max_tokens)
    prompt = Prompt(messages=question.messages, sampling=sampling, adapter=design.adapter)
    seed = design.draw_seed(question, temperature, index)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            answer = await backend.complete(prompt, seed=seed, replica=backend.choose_replica())
            break
        except BackendError as error:
            log.warning("draw_failed", attempt=attempt, reason=error.message)
            if attempt == _ATTEMPTS or isinstance(error, BackendRejected):
                raise
            await asyncio.sleep(_RETRY_WAIT_S * attempt)
    return Draw(
        prompt=question.prompt,
        kind=question.kind,
        temperature=temperature,
        index=index,
        seed=seed,
        text=answer.text or "",
        finish_reason=answer.finish_reason,
        completion_tokens=answer.completion_tokens,
        turns=question.turns,
    )
