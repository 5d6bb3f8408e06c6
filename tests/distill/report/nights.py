"""Nights with every other outcome: empty, refused, the first one, hostile, with absurd numbers."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from math import inf, nan
from typing import Any

from distill.evaluation.curve import Estimate
from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.guardrails import Guardrail
from distill.evaluation.verdict import NonInferiorityTest, Verdict
from distill.report.facts import Answer, Collected, NightFacts, PolicyVersion, SideBySide
from tests.distill.report.a_night import BEGAN, NAME, finished_night, night_without_training

HOSTILE = (
    "<script>alert('pwned')</script><img src=http://evil.example/x onerror=alert(1)></td></table></body>"
    "\"'`{{ 7 * 7 }}{% raw %}<!-- ]]> &lt;b&gt; \x00\x07\u202eright to left\u2028 😀 é 漢字 ‮ https://evil.example/"
)


def first_night() -> NightFacts:
    """No policy was ever published, and nothing is known of the code and the data."""
    unknown: dict[str, Any] = {"commit": None, "data_hash": None, "versions": {}, "settings": {}}
    return night_without_training().model_copy(update={**unknown, "history": [], "costs": [], "resumed": 3})


def no_draws() -> NightFacts:
    """The measured samples are gone: persons were forgotten since the gate decided."""
    return finished_night().model_copy(update={"measured": None, "samples": []})


def with_tests(verdict: Verdict, tests: list[NonInferiorityTest], **changes: Any) -> Verdict:
    """The verdict with other tests of its checkpoint, and other changes."""
    return replace(verdict, candidates=[replace(verdict.candidates[0], tests=tests)], **changes)


def refused_by_guardrails() -> NightFacts:
    """The evidence sufficed, but answers grew too long and the held-out reward model objects."""
    night = finished_night()
    assert night.verdict is not None
    assert night.measured is not None
    against = Guardrail("judge", -0.031, -0.05, -0.012, 0.0, False, "the judge scores it -0.031")
    guardrails = [
        Guardrail("length", 0.31, 0.28, 0.34, 0.15, False, "+31 % tokens"),
        *night.measured.guardrails[1:-1],
        against,
    ]
    (result,) = night.verdict.candidates
    tests = [replace(test, guardrails=tuple(guardrails)) if test.n == 4 else test for test in result.tests]
    other = replace(
        result,
        checkpoint="checkpoint-31",
        tests=[replace(test, passed=False, crossed_at=None, gain_mean=-1.0) for test in result.tests],
    )
    verdict = replace(
        night.verdict,
        promote=False,
        n_new=8,
        checkpoint=None,
        temperature=None,
        why="N stays 8: checkpoint-61 keeps the reward at N = 4, but +31 % tokens",
        candidates=[replace(result, tests=tests, chosen=None), other],
    )
    return night.model_copy(
        update={
            "outcome": "kept",
            "headline": verdict.why,
            "verdict": verdict,
            "measured": night.measured.model_copy(update={"guardrails": guardrails, "judge_model": "second judge"}),
            "promoted": None,
            "history": night.history[:1],
        }
    )


def after_many_nights() -> NightFacts:
    """N fell, was rolled back, and fell again."""
    steps = [(8, "settings"), (6, "8 → 6"), (4, "6 → 4"), (6, "rolled back by the guard"), (4, "6 → 4"), (2, "4 → 2")]
    history = [
        PolicyVersion(
            version=place,
            created=BEGAN - timedelta(days=3 * (len(steps) - place)),
            adapter=None if place == 1 else f"rft-202611{place:02d}-0badcafe",
            n=n,
            temperature=None if place == 1 else 0.7,
            reason=reason,
        )
        for place, (n, reason) in enumerate(steps, start=1)
    ]
    return finished_night().model_copy(update={"history": history})


def hostile_night() -> NightFacts:
    """Every text that a stranger, a model or an error can choose attacks the page."""
    night = finished_night()
    assert night.verdict is not None
    assert night.measured is not None
    assert night.trained is not None
    tests = night.verdict.candidates[0].tests
    old = Answer(name=HOSTILE, n=8, temperature=1.0, text=HOSTILE * 700, reward=0.25, tokens=60_000)
    new = Answer(name=NAME, n=4, temperature=0.7, text=HOSTILE, reward=-1.5, tokens=9)
    turns: list[dict[str, Any]] = [
        {"role": HOSTILE, "content": HOSTILE},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": HOSTILE}}]},
        {"role": "user", "content": [{"type": "text", "text": HOSTILE}, {"type": "text", "text": "and?"}]},
    ]
    samples = [
        SideBySide(messages=turns, old=old, new=new),
        SideBySide(messages=[], old=new, new=old),
        SideBySide(messages=[{"role": "user", "content": [{"type": "image_url"}]}], old=new, new=new),
    ]
    return night.model_copy(
        update={
            "run": HOSTILE,
            "headline": HOSTILE,
            "commit": HOSTILE,
            "data_hash": HOSTILE,
            "versions": {HOSTILE: HOSTILE},
            "settings": {"training": {"seed": 7, HOSTILE: HOSTILE, "empty": {}}},
            "verdict": with_tests(night.verdict, [replace(test, against=HOSTILE) for test in tests], why=HOSTILE),
            "measured": night.measured.model_copy(update={"guardrails": [], "judge_model": HOSTILE}),
            "trained": night.trained.model_copy(update={"objective": HOSTILE, "checkpoints": [HOSTILE]}),
            "collected": Collected(
                archived=1, unreadable=2, total=3, examples=1, held_out=0, excluded={HOSTILE: 1}
            ),  # does not add up
            "samples": samples,
            "serving": night.serving.model_copy(update={"adapter": HOSTILE, "reason": HOSTILE}),
            "history": [one.model_copy(update={"adapter": HOSTILE, "reason": HOSTILE}) for one in night.history],
        }
    )


def absurd_numbers() -> NightFacts:
    """Loss and evidence are not finite; the curves have one point."""
    night = finished_night()
    assert night.verdict is not None
    assert night.measured is not None
    assert night.trained is not None
    unknown = Estimate(nan, -inf, inf)
    sample_sets = [each.model_copy(update={"sd": nan}) for each in night.measured.sample_sets]
    loss = [point.model_copy(update={"loss": nan, "gradient_norm": None}) for point in night.trained.loss]
    (result,) = night.verdict.candidates
    first, second, *_ = result.tests
    tests = [
        replace(first, passed=False, crossed_at=None, highest_wealth=inf, path=[1.0, nan, inf], difference=unknown),
        replace(second, passed=False, crossed_at=None, highest_wealth=3e7, path=[0.0, 3e7]),
        replace(second, passed=False, crossed_at=None, n=5, highest_wealth=1e-9, path=[]),
        replace(second, passed=False, crossed_at=None, n=4, highest_wealth=nan, path=[nan]),
    ]
    worth = EquivalentN(8.0, 1.9, inf, beyond=True)
    verdict = replace(
        night.verdict,
        promote=False,
        n_new=8,
        candidates=[replace(result, tests=tests, curve=result.curve[:1], worth_at_best=worth)],
        serving_curves={t: curve[:1] for t, curve in night.verdict.serving_curves.items()},
    )
    bars = [one.model_copy(update={"counts": [0] * len(one.counts)}) for one in night.measured.rewards]
    measured = {"sample_sets": sample_sets, "rewards": bars, "lengths": []}
    return night.model_copy(
        update={
            "trained": night.trained.model_copy(update={"loss": loss, "peak_memory_bytes": None, "tokens_per_s": inf}),
            "measured": night.measured.model_copy(update=measured),
            "verdict": verdict,
            "costs": [cost.model_copy(update={"seconds": 0.0}) for cost in night.costs],
        }
    )


def trained_without_a_log() -> NightFacts:
    """Nothing was logged while training, and the new policy's samples are not described."""
    night = finished_night(promoted=False)
    assert night.trained is not None
    assert night.measured is not None
    old = [each for each in night.measured.sample_sets if each.side == "old"]
    return night.model_copy(
        update={
            "trained": night.trained.model_copy(update={"loss": []}),
            "measured": night.measured.model_copy(update={"sample_sets": old}),
        }
    )


NIGHTS = {
    "promoted": finished_night,
    "kept": lambda: finished_night(promoted=False),
    "too-few": night_without_training,
    "first": first_night,
    "no-draws": no_draws,
    "refused": refused_by_guardrails,
    "many-nights": after_many_nights,
    "hostile": hostile_night,
    "absurd": absurd_numbers,
    "without-a-log": trained_without_a_log,
}
