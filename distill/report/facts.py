"""The facts of one night: ``report.json`` in its run directory has everything that the report shows.

A part that the night did not reach is None. Rewards are in standard units: 0 is the mean of one draw of the serving
policy at its serving temperature, and 1 the spread of its draws within a prompt.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.errors import DataError
from distill.evaluation.guardrails import JUDGE, Guardrail
from distill.evaluation.verdict import VERDICT_FILE, Verdict
from gateway.files import write_atomically

FACTS_FILE = "report.json"
SCHEMA_VERSION = 2

Side = Literal["old", "new"]


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="null")


class SampleSummary(_Fact):
    """The samples of one policy at one temperature; ``name`` is the adapter's or checkpoint's, or "base"."""

    side: Side
    name: str
    temperature: float
    sd: float
    """Spread within a prompt, in standard units."""
    mean_tokens: float
    truncated: float
    """Share of samples that ended at the token limit."""
    distinct: float
    """Share of a prompt's samples that differ from each other."""
    pick_tokens: list[float]
    """Mean tokens of the best of n, for n = 1, 2, …"""


class Bars(_Fact):
    """A histogram: ``counts[i]`` samples lie from ``edges[i]`` to ``edges[i + 1]``."""

    side: Side
    name: str
    temperature: float
    edges: list[float]
    counts: list[int]


class Measured(_Fact):
    """The samples of the held-out prompts; the verdict has their curves."""

    draws: int
    """Samples of each prompt at each temperature."""
    max_tokens: int
    reward_model: str
    judge_model: str | None = None
    """The held-out reward model, which selected nothing."""
    sample_sets: list[SampleSummary]
    guardrails: list[Guardrail]
    """Of the checkpoint that was chosen or came nearest."""
    rewards: list[Bars]
    """Of the serving policy, and of that checkpoint."""
    lengths: list[Bars]


class Collected(_Fact):
    """Counts of the records that came from the journal, and of those that may train."""

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
    """Examples by the reward model that chose their winner, the newest last."""


class LossPoint(_Fact):
    """One logged step of training."""

    step: int
    loss: float
    gradient_norm: float | None = None


class Trained(_Fact):
    """The training of the new policy."""

    objective: str
    base_model: str
    examples: int
    replayed: int
    """Examples from earlier nights among them."""
    tokens: int
    steps: int
    seconds: float
    tokens_per_s: float
    peak_memory_bytes: int | None = None
    checkpoints: list[str]
    loss: list[LossPoint]


class Answer(_Fact):
    """The answer that one policy would give to one held-out prompt."""

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
    """Time and tokens of one step."""

    step: str
    seconds: float
    drawn_tokens: int = 0
    scored_tokens: int = 0
    """Tokens of the scored answers, counted for each reward model."""
    trained_tokens: int = 0
    reused_draws: int = 0
    """Samples of an earlier night that were used again."""


class Promoted(_Fact):
    """The adapter that was promoted."""

    adapter: str
    canary: str
    """Findings of the weight check, in words."""
    policy_version: int | None = None
    share: float | None = None
    """Share of traffic that it answered when the report was written."""


class NightFacts(_Fact):
    """Everything that the report shows of a night."""

    schema_version: int = SCHEMA_VERSION
    run: str
    outcome: Literal["promoted", "kept", "too few examples"]
    headline: str
    """The outcome in one sentence."""
    notes: list[str] = []
    """Changes since earlier nights: another model behind a name, samples or rewards made again."""
    started: datetime
    finished: datetime
    resumed: int = 0
    """Number of times that the night was resumed."""
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
    verdict: Verdict | None = None
    promoted: Promoted | None = None
    samples: list[SideBySide] = []
    history: list[PolicyVersion] = []
    """Every published policy, oldest first."""
    costs: list[Cost] = []

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the facts in a run directory, also those that an earlier release wrote.

        Raises:
            DataError: They are missing or malformed.
        """
        path = folder / FACTS_FILE
        try:
            document = json.loads(path.read_bytes())
            if isinstance(document, dict) and document.get("schema_version") == 1:
                document = _from_version_1(document, folder / VERDICT_FILE)
            return cls.model_validate(document)
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            raise DataError(f"{path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(f"{path} is not a night's facts: {type(error).__name__}") from error

    def write(self, folder: Path) -> Path:
        """Write the facts into a run directory atomically; return the file."""
        path = folder / FACTS_FILE
        write_atomically(path, self.model_dump_json(indent=2, by_alias=True).encode() + b"\n")
        return path


def _from_version_1(old: dict[str, Any], verdict_file: Path) -> dict[str, Any]:
    """Convert facts that repeated parts of verdict.json in a format of their own; that file has all of them."""
    measured, decision = old["measured"], old["decision"]
    if measured is None or decision is None:
        return old | {"schema_version": SCHEMA_VERSION, "measured": None}
    guardrails = [
        # Version 1 kept the limits (low, high), not the interval.
        each
        | {"why": each["detail"], "bound": each["low"] if each["high"] is None else each["high"]}
        | dict.fromkeys(("low", "high"), each["value"])
        for each in decision["guards"]
    ]
    judge = decision["judge"]
    if judge is not None:
        found = {"name": JUDGE, "value": judge["difference"]["mean"], "bound": 0.0, "passed": judge["agrees"]}
        guardrails.append(judge["difference"] | found | {"why": judge["detail"]})
    measured = measured | {
        "judge_model": None if judge is None else judge["name"],
        "sample_sets": [each | {"pick_tokens": [at["tokens"] for at in each["points"]]} for each in measured["curves"]],
        "guardrails": guardrails,
    }
    verdict = json.loads(verdict_file.read_bytes())
    return old | {"schema_version": SCHEMA_VERSION, "measured": measured, "verdict": verdict}
