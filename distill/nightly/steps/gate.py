"""The gate's turn: may N shrink, by what was drawn and scored?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from distill.errors import DataError
from distill.evaluation.drawn import Candidate
from distill.evaluation.gate import Rules, decide
from distill.evaluation.guards import Bounds
from distill.evaluation.verdict import Verdict
from distill.nightly.candidates import forget
from distill.nightly.context import Night, Result
from distill.nightly.steps.measure import Sampled, anchor, sampled, serving_temperature
from distill.run_dir import RunDir
from distill.settings import EvaluationSettings
from gateway.files import write_atomically

_MEND = "remove steps/gate.json beside it, and the gate decides again"
_VERDICT = TypeAdapter(Verdict)


def verdict_file(run: RunDir) -> Path:
    """The gate's verdict with all its evidence."""
    return run.path / "verdict.json"


def gate(night: Night) -> Result:
    """Judge every checkpoint against the serving policy, on the same prompts."""
    settings = night.settings.evaluation
    every = sampled(night)
    verdict = decide(
        {each.temperature: each.drawn for each in every if each.source.side == "old"},
        serving_temperature(night),
        [Candidate(each.source.name, each.temperature, each.drawn) for each in every if each.source.side == "new"],
        n_now=night.serving.n,
        anchor=anchor(night),
        conversations=conversations(every),
        rules=Rules(alpha=settings.alpha, bounds=bounds(settings)),
    )
    write_atomically(
        verdict_file(night.run), orjson.dumps(asdict(verdict), option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2)
    )
    night.say(verdict.why)
    adapters = night.results["draw"]["candidates"]
    forget(night, [adapter for checkpoint, adapter in adapters.items() if checkpoint != verdict.checkpoint])
    return {
        "promote": verdict.promote,
        "n_now": verdict.n_now,
        "n_new": verdict.n_new,
        "checkpoint": verdict.checkpoint,
        "temperature": verdict.temperature,
        "why": verdict.why,
        "more_prompts": verdict.more_prompts,
    }


def bounds(settings: EvaluationSettings) -> Bounds:
    """What the guards allow."""
    return Bounds(settings.max_length_change, settings.max_rise, settings.min_diversity)


def read_verdict(run: RunDir) -> Verdict:
    """The verdict of a night whose gate is through.

    Raises:
        DataError: It is missing or malformed.
    """
    path = verdict_file(run)
    try:
        return _VERDICT.validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {_MEND}") from error
    except ValidationError as error:
        raise DataError(f"{path} is no verdict: {_MEND}") from error


def conversations(every: list[Sampled]) -> list[str]:
    """Each measured prompt's conversation."""
    return [prompt[0].question.key for prompt in every[0].draws]
