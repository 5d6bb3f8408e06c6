"""The gate: it decides by the scored samples whether a checkpoint may be promoted, and with which N."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from distill.errors import DataError
from distill.evaluation.gate import Rules, decide
from distill.evaluation.guardrails import Bounds
from distill.evaluation.verdict import VERDICT_FILE, Verdict
from distill.nightly.checkpoint_adapters import unload_candidates
from distill.nightly.context import Night
from distill.nightly.results import DrawResult, GateResult, ScoreResult
from distill.nightly.sample_plan import serving_temperature
from distill.nightly.scored_samples import read_baseline, read_samples
from distill.run_dir import RunDir
from distill.settings import EvaluationSettings
from gateway.files import write_atomically

_REPAIR = "remove steps/gate.json next to it, and the gate decides again"
_VERDICT = TypeAdapter(Verdict)


def verdict_file(run: RunDir) -> Path:
    """Return the file of the gate's verdict with all its evidence."""
    return run.path / VERDICT_FILE


def gate(night: Night, drawn: DrawResult, scored: ScoreResult) -> GateResult:
    """Compare every checkpoint with the serving policy on the same prompts; unload those that were not chosen."""
    settings = night.settings.evaluation
    every = read_samples(night, drawn, scored)
    verdict = decide(
        [each.scored for each in every if each.policy.side == "old"],
        serving_temperature(night),
        [each.scored for each in every if each.policy.side == "new"],
        n_now=night.serving.n,
        baseline=read_baseline(night, drawn, scored),
        conversations=every[0].conversations,
        rules=Rules(alpha=settings.alpha, bounds=bounds(settings)),
    )
    write_atomically(verdict_file(night.run), _VERDICT.dump_json(verdict, by_alias=True, indent=2))
    night.print(verdict.why)
    unload_candidates(
        night, [adapter for checkpoint, adapter in drawn.candidates.items() if checkpoint != verdict.checkpoint]
    )
    return GateResult(
        promote=verdict.promote,
        n_now=verdict.n_now,
        n_new=verdict.n_new,
        checkpoint=verdict.checkpoint,
        temperature=verdict.temperature,
        why=verdict.why,
        more_prompts=verdict.more_prompts,
    )


def bounds(settings: EvaluationSettings) -> Bounds:
    return Bounds(settings.max_length_change, settings.max_rise, settings.min_diversity)


def read_verdict(run: RunDir) -> Verdict:
    """Read the verdict of a night whose gate step is done.

    Raises:
        DataError: It is missing or malformed.
    """
    path = verdict_file(run)
    try:
        return _VERDICT.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {_REPAIR}") from error
    except ValidationError as error:
        raise DataError(f"{path} is not a verdict: {_REPAIR}") from error
