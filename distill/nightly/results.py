"""One result a step: written to the step's marker when it is done, and read back when a night is resumed.

A marker of an earlier release may lack fields that have a default here. The names of the steps and of the fields are
the format of the markers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import TypeAdapter, ValidationError

from distill.errors import DataError
from distill.run_dir import RunDir


class StepResult:
    """The base of all steps' results."""

    step: ClassVar[str]


@dataclass(frozen=True)
class CollectResult(StepResult):
    """Records that were archived, over all attempts at the night."""

    step = "collect"
    archived: int
    duplicates: int
    unreadable: int
    lost: int = 0


@dataclass(frozen=True)
class CurateResult(StepResult):
    """Counts of the archive's records: ``new`` are winners that no earlier night has trained on."""

    step = "curate"
    total: int
    new: int
    examples: int
    held_out: int
    excluded: dict[str, int]
    data_hash: str
    reward_models: dict[str, int] = field(default_factory=dict)
    news: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainResult(StepResult):
    """The checkpoints, ascending by step; ``losses`` and ``gradient_norms`` hold one value a training step."""

    step = "train"
    checkpoints: tuple[Path, ...]
    steps: int
    examples: int
    replayed: int
    tokens: int
    seconds: float
    peak_memory_bytes: int | None
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    base: str


@dataclass(frozen=True)
class DrawResult(StepResult):
    """The samples that this night drew, and those of earlier nights that it reused.

    ``refused`` are keys of prompts that the backend refuses; ``candidates`` are adapters by their checkpoint's name;
    ``behaviour`` is the id of the served model, empty in nights of releases that did not probe it.
    """

    step = "draw"
    tokens: int
    reused: int
    refused: list[str]
    prompts: int
    candidates: dict[str, str]
    behaviour: str = ""
    news: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RewardsFile:
    """The rewards of one reward model, and the tokens that this night scored for it."""

    model: str
    path: Path
    tokens: int


@dataclass(frozen=True)
class ScoreResult(StepResult):
    """The rewards of the model that selects, and of the held-out judge where one is set."""

    step = "score"
    select: RewardsFile
    judge: RewardsFile | None
    tokens: int
    news: list[str] = field(default_factory=list)

    @property
    def files(self) -> list[RewardsFile]:
        """The rewards of every model that scored."""
        return [self.select] if self.judge is None else [self.select, self.judge]


@dataclass(frozen=True)
class GateResult(StepResult):
    """The verdict in short; the whole of it is in verdict.json."""

    step = "gate"
    promote: bool
    n_now: int
    n_new: int
    checkpoint: str | None
    temperature: float | None
    why: str
    more_prompts: int | None = None


@dataclass(frozen=True)
class PublishResult(StepResult):
    step = "publish"
    adapter: str
    path: Path


@dataclass(frozen=True)
class LoadResult(StepResult):
    step = "load"
    urls: int


@dataclass(frozen=True)
class CanaryResult(StepResult):
    """The findings of the weight check, one a replica."""

    step = "canary"
    found: str


@dataclass(frozen=True)
class PromoteResult(StepResult):
    """The policy that started the trial; ``share`` is None where that trial had already ended."""

    step = "promote"
    policy_version: int
    share: float | None


@dataclass(frozen=True)
class ReportResult(StepResult):
    step = "report"
    outcome: str
    headline: str
    page: Path


@dataclass
class NightResults:
    """Results of a night's steps, in order; None for a step that was not reached."""

    collect: CollectResult
    curate: CurateResult
    train: TrainResult | None = None
    draw: DrawResult | None = None
    score: ScoreResult | None = None
    gate: GateResult | None = None
    publish: PublishResult | None = None
    load: LoadResult | None = None
    canary: CanaryResult | None = None
    promote: PromoteResult | None = None

    def steps(self) -> list[StepResult]:
        """Return the results of the steps that were reached."""
        return [result for result in vars(self).values() if result is not None]

    @property
    def news(self) -> list[str]:
        """Changes since earlier nights, in words, in the order of the steps."""
        return [text for result in (self.curate, self.draw, self.score) if result is not None for text in result.news]


_KINDS: list[type[StepResult]] = StepResult.__subclasses__()  # in the order of their definition
_ADAPTERS: dict[type[StepResult], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in _KINDS}

STEPS = tuple(kind.step for kind in _KINDS)
"""The steps of a night, in order."""

Result = TypeVar("Result", bound=StepResult)


def write_result(run: RunDir, result: StepResult) -> None:
    """Write a step's marker: from now on the step is never run again in this night."""
    run.mark(result.step, _ADAPTERS[type(result)].dump_python(result, mode="json"))


def read_result(run: RunDir, kind: type[Result]) -> Result | None:
    """Return a step's result, or None while the step is not done.

    Raises:
        DataError: Its marker is damaged; says which, and what to do.
    """
    marker = run.result(kind.step)
    if marker is None:
        return None
    try:
        result: Result = _ADAPTERS[kind].validate_python(marker)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise DataError(
            f"{run.marker(kind.step)} is not what the step left ({where}: {problem['msg']}): "
            "remove it, and the step is run again"
        ) from None
    return result
