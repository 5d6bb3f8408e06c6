"""The facts of one night, ``report.json`` in its run directory: all that the report shows, and nothing else is needed.

A part that the night did not reach, or had no reason to reach, is None; the report says so. Rewards are in ``unit``:
standard ones, so that 0 is one draw of the old policy at its reference temperature and 1 the spread within a prompt.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.errors import DataError
from gateway.files import write_atomically

FACTS_FILE = "report.json"
SCHEMA_VERSION = 1

Side = Literal["old", "new"]


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class Interval(_Fact):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class Point(_Fact):
    """The best of ``n`` draws: its expected reward, and the tokens of the answer that is picked."""

    n: int
    reward: Interval
    tokens: float


class Curve(_Fact):
    """Reward against n for one policy at one temperature; ``name`` is the adapter's or checkpoint's, or "base"."""

    side: Side
    name: str
    temperature: float
    points: list[Point]
    sd: float
    """Spread within a prompt, in ``unit``."""
    mean_tokens: float
    truncated: float
    """Share of draws that ended at the token limit."""
    distinct: float
    """Share of a prompt's draws that differ from each other."""


class Bars(_Fact):
    """A histogram: ``counts[i]`` draws lie from ``edges[i]`` to ``edges[i + 1]``."""

    side: Side
    name: str
    temperature: float
    edges: list[float]
    counts: list[int]


class EquivalentN(_Fact):
    """How many old draws one draw of the new policy is worth; ``at_least`` where the old curve ends before that."""

    against: str
    """In words: the old policy at which temperature."""
    value: float
    low: float
    high: float
    at_least: bool = False


class Control(_Fact):
    """The temperature at which the old policy is best at one n: every claim is made against it."""

    n: int
    temperature: float
    reward: Interval


class Measured(_Fact):
    """What the held-out prompts said."""

    prompts: int
    draws: int
    max_tokens: int
    reward_model: str
    unit: str
    curves: list[Curve]
    controls: list[Control]
    equivalent_n: list[EquivalentN]
    """The headline first: against the old policy at its best temperature for each n. The base, where another serves
    by now, comes last: what all nights together have bought."""
    length_ratio: float | None = None
    """Mean tokens of the chosen policy's answers over the old one's, at their Ns."""
    spread_ratio: float | None = None
    rewards: list[Bars]
    lengths: list[Bars]


class Tried(_Fact):
    """One N′ that the gate looked at, of one checkpoint."""

    checkpoint: str
    n: int
    passed: bool
    difference: Interval
    """New best of n minus old best of N, in the gate's own units ([0, 1])."""
    wealth: float
    path: list[float]
    """The e-process after each prompt (thinned to a few hundred points); it must reach ``threshold`` once."""
    reason: str = ""
    """Why it did not pass, in words."""


class Guard(_Fact):
    """One more condition, measured for the chosen (or best) checkpoint."""

    name: str
    passed: bool
    detail: str
    value: float | None = None
    low: float | None = None
    high: float | None = None


class Judge(_Fact):
    """What the held-out reward model, which selected nothing, says about the same answers."""

    name: str
    agrees: bool
    difference: Interval
    detail: str = ""


class Decision(_Fact):
    """What the gate decided, and why."""

    promote: bool
    n_old: int
    n_new: int | None
    checkpoint: str | None
    why: str
    """One sentence for a person."""
    alpha: float
    threshold: float
    """1 / alpha: what the e-process must reach."""
    margin: float
    """The worth of one sample, in the gate's own units."""
    more_prompts: int | None = None
    """About how many more held-out prompts would settle it, when there was not enough evidence."""
    tried: list[Tried]
    guards: list[Guard]
    judge: Judge | None = None


class Collected(_Fact):
    """What came from the journal, and what may train."""

    archived: int
    """Records written to the archive this night."""
    unreadable: int
    lost: int = 0
    """Records that left Redis before they were archived."""
    total: int
    """Records looked at; ``examples`` + ``held_out`` + all of ``excluded`` add up to it."""
    examples: int
    held_out: int
    excluded: dict[str, int]
    reward_models: dict[str, int] = {}
    """Examples by the reward model that chose their winner, the newest one last."""


class LossPoint(_Fact):
    """One logged step of training."""

    step: int
    loss: float
    gradient_norm: float | None = None


class Trained(_Fact):
    """How the new policy was made."""

    objective: str
    base_model: str
    examples: int
    replayed: int
    """How many of them came from earlier nights."""
    tokens: int
    steps: int
    seconds: float
    tokens_per_s: float
    peak_memory_bytes: int | None = None
    checkpoints: list[str]
    loss: list[LossPoint]


class Answer(_Fact):
    """One policy's pick for one held-out prompt."""

    name: str
    n: int
    temperature: float
    text: str
    reward: float
    tokens: int


class SideBySide(_Fact):
    """One held-out conversation, answered by both policies as they would serve it."""

    messages: list[dict[str, Any]]
    old: Answer
    new: Answer


class PolicyVersion(_Fact):
    """One published policy."""

    version: int
    created: datetime
    adapter: str | None
    n: int
    temperature: float | None
    reason: str


class Cost(_Fact):
    """What one step took."""

    step: str
    seconds: float
    drawn_tokens: int = 0
    scored_tokens: int = 0
    """Of the answers that were scored, once for each reward model."""
    trained_tokens: int = 0
    reused_draws: int = 0
    """Draws of an earlier night that were not drawn again."""


class Promoted(_Fact):
    """What became of the new adapter."""

    adapter: str
    canary: str
    """What the check by behaviour found, in words."""
    policy_version: int | None = None
    share: float | None = None
    """Share of traffic that it answers as this is written."""


class NightFacts(_Fact):
    """A night."""

    schema_version: int = SCHEMA_VERSION
    run: str
    outcome: Literal["promoted", "kept", "too few examples", "unfinished"]
    headline: str
    """What to read when reading one line."""
    notes: list[str] = []
    """What changed around the night: a model behind its name, draws or rewards made anew."""
    started: datetime
    finished: datetime
    resumed: int = 0
    """How often the night was taken up again after it was broken off."""
    versions: dict[str, str]
    commit: str | None
    data_hash: str | None
    settings: dict[str, Any]
    """The night's settings, without secrets."""
    serving: PolicyVersion
    """The policy that served as the night began."""
    collected: Collected | None = None
    trained: Trained | None = None
    measured: Measured | None = None
    decision: Decision | None = None
    promoted: Promoted | None = None
    samples: list[SideBySide] = []
    history: list[PolicyVersion] = []
    """Every published policy, oldest first: N over all nights."""
    costs: list[Cost] = []

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The facts in a run directory.

        Raises:
            DataError: They are missing or malformed.
        """
        path = folder / FACTS_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise DataError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None

    def write(self, folder: Path) -> Path:
        """Write them into a run directory, in one step; returns the file."""
        path = folder / FACTS_FILE
        write_atomically(path, self.model_dump_json(indent=2).encode() + b"\n")
        return path
