"""A night's facts as a real one writes them, with plausible numbers, for the report's tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import log

import numpy as np

from distill.evaluation.curve import Estimate
from distill.evaluation.equivalent import EquivalentN
from distill.evaluation.guardrails import Guardrail
from distill.evaluation.verdict import CheckpointResult, CurvePoint, NonInferiorityTest, Verdict
from distill.report.facts import (
    Answer,
    Bars,
    Collected,
    Cost,
    LossPoint,
    Measured,
    NightFacts,
    PolicyVersion,
    Promoted,
    SampleSummary,
    Side,
    SideBySide,
    Trained,
)

BEGAN = datetime(2026, 11, 23, 3, 30, tzinfo=UTC)
NAME = "rft-20261123-4f1c09be"
LEVELS: dict[tuple[Side, float], tuple[float, float]] = {  # mean and spread of one draw
    ("old", 0.4): (0.11, 0.78),
    ("old", 0.7): (0.06, 0.85),
    ("old", 1.0): (0.00, 1.00),
    ("new", 0.7): (0.55, 0.71),
}
GAUSSIAN_MAX = (0.0, 0.564, 0.846, 1.029, 1.163, 1.267, 1.352, 1.424)


def finished_night(*, promoted: bool = True, seed: int = 0) -> NightFacts:
    """A whole night: promoted from 8 to 4, or kept because the evidence was too weak."""
    rng = np.random.default_rng(seed)
    return NightFacts(
        run="2026-11-23T03-30-00",
        outcome="promoted" if promoted else "kept",
        headline=_why(promoted),
        started=BEGAN,
        finished=BEGAN + timedelta(hours=1, minutes=52),
        resumed=1,
        versions={"python": "3.11.9", "torch": "2.13.0", "trl": "1.16.0", "peft": "0.21.1"},
        commit="6cc80b7",
        data_hash="1f0c" * 16,
        settings={"training": {"objective": "sft", "rank": 32}, "evaluation": {"draws": 8, "prompts": 290}},
        serving=_version(1, "settings", n=8, adapter=None),
        collected=Collected(
            archived=1204,
            unreadable=1,
            total=1204,
            examples=486,
            held_out=290,
            excluded={"single": 61, "fallback": 9, "truncated": 188, "near_duplicate": 74, "margin": 96},
        ),
        trained=Trained(
            objective="sft",
            base_model="SmolLM2-135M-Instruct",
            examples=486,
            replayed=120,
            tokens=152_811,
            steps=91,
            seconds=1433.0,
            tokens_per_s=106.6,
            peak_memory_bytes=2_711_000_000,
            checkpoints=["checkpoint-31", "checkpoint-61", "checkpoint-91"],
            loss=[_loss(step, rng) for step in range(1, 92)],
        ),
        measured=_measured(rng),
        verdict=_verdict(rng, promoted=promoted),
        promoted=Promoted(adapter=NAME, canary="8 of 8 prompts as computed offline", policy_version=2, share=0.1)
        if promoted
        else None,
        samples=[_pair(place) for place in range(12)],
        history=[
            _version(1, "settings", n=8, adapter=None),
            *([_version(2, "the gate allowed 8 → 4", n=4, adapter=NAME)] if promoted else []),
        ],
        costs=[
            Cost(step="collect", seconds=2.1),
            Cost(step="curate", seconds=3.4),
            Cost(step="train", seconds=1433.0, trained_tokens=458_433),
            Cost(step="draw", seconds=4810.0, drawn_tokens=412_990, reused_draws=6960),
            Cost(step="score", seconds=322.0, scored_tokens=1_310_222),
            Cost(step="gate", seconds=4.0),
            Cost(step="publish", seconds=1.3),
            Cost(step="load", seconds=6.2),
            Cost(step="canary", seconds=9.9),
        ],
    )


def night_without_training() -> NightFacts:
    """A night that ended early: too few winners."""
    return finished_night().model_copy(
        update={
            "outcome": "too few examples",
            "headline": "N stays 8: 12 winners to train on, 32 are needed",
            "trained": None,
            "measured": None,
            "verdict": None,
            "promoted": None,
            "samples": [],
            "costs": [Cost(step="collect", seconds=2.1), Cost(step="curate", seconds=3.4)],
        }
    )


def _version(version: int, reason: str, *, n: int, adapter: str | None) -> PolicyVersion:
    created = BEGAN + timedelta(days=version - 1)
    return PolicyVersion(version=version, created=created, adapter=adapter, n=n, temperature=0.7, reason=reason)


def _loss(step: int, rng: np.random.Generator) -> LossPoint:
    value = 1.05 + 0.6 / (1 + step / 12) + rng.normal(0, 0.04)
    return LossPoint(step=step, loss=float(value), gradient_norm=float(0.9 + rng.gamma(2, 0.15)))


def _measured(rng: np.random.Generator) -> Measured:
    shown = [("old", 0.4), ("new", 0.7)]
    rewards = {key: rng.normal(*LEVELS[key], size=2320) for key in LEVELS}
    lengths = {key: np.clip(rng.gamma(3, 30, size=2320), 4, 128) for key in LEVELS}
    reward_edges = np.linspace(-4, 4, 33)
    length_edges = np.linspace(0, 128, 33)
    return Measured(
        draws=8,
        max_tokens=128,
        reward_model="model+reward",
        judge_model="judge",
        sample_sets=[_sample_set(*key) for key in LEVELS],
        guardrails=[
            Guardrail("length", 0.04, 0.01, 0.07, 0.15, True, "+4 % tokens"),
            Guardrail("truncation", -0.02, -0.03, -0.01, 0.03, True, "21 % → 19 %"),
            Guardrail("repetition", 0.0, -0.01, 0.01, 0.03, True, "3 % → 3 %"),
            Guardrail("distinct answers", 0.93, 0.91, 0.95, 0.5, True, "93 %"),
            Guardrail("distinct word pairs", 0.97, 0.96, 0.98, 0.5, True, "97 %"),
            Guardrail("judge", 0.008, -0.002, 0.018, 0.0, True, "+0.008 [-0.002, +0.018]"),
        ],
        rewards=[_bars(*key, values, reward_edges) for key, values in rewards.items() if key in shown],
        lengths=[_bars(*key, values, length_edges) for key, values in lengths.items() if key in shown],
    )


def _name(side: Side) -> str:
    return "base" if side == "old" else "checkpoint-61"


def _sample_set(side: Side, temperature: float) -> SampleSummary:
    return SampleSummary(
        side=side,
        name=_name(side),
        temperature=temperature,
        sd=LEVELS[side, temperature][1],
        mean_tokens=90.0,
        truncated=0.21,
        distinct=0.97 if side == "old" else 0.93,
        pick_tokens=[90 - 3.5 * log(n) for n in range(1, 9)],
    )


def _curve(side: Side, temperature: float) -> list[CurvePoint]:
    mean, sd = LEVELS[side, temperature]
    means = [mean + sd * gain for gain in GAUSSIAN_MAX]
    return [CurvePoint(n, mean, mean - 0.09, mean + 0.09) for n, mean in enumerate(means, start=1)]


def _bars(side: Side, temperature: float, values: np.ndarray, edges: np.ndarray) -> Bars:
    counts, _ = np.histogram(values, edges)
    return Bars(side=side, name=_name(side), temperature=temperature, edges=edges.tolist(), counts=counts.tolist())


def _why(promoted: bool) -> str:
    if promoted:
        return "N falls from 8 to 4: the best of 4 of checkpoint-61 beats the old policy's best of 7"
    return "N stays 8: not enough evidence, about 240 more conversations are needed"


def _verdict(rng: np.random.Generator, *, promoted: bool) -> Verdict:
    shifts = {7: 0.021, 6: 0.02, 5: 0.019, 4: 0.017 if promoted else 0.004, 3: 0.002, 2: -0.012, 1: -0.05}
    return Verdict(
        promote=promoted,
        n_now=8,
        n_base=None,
        n_new=4 if promoted else 8,
        checkpoint="checkpoint-61" if promoted else None,
        temperature=0.7 if promoted else None,
        why=_why(promoted),
        more_prompts=None if promoted else 240,
        prompts=290,
        conversations=290,
        alpha=0.05,
        threshold=20.0,
        delta=0.012,
        serving_temperature=0.4,
        control_temperature=0.4,
        serving_curves={f"{t:g}": _curve(side, t) for side, t in LEVELS if side == "old"},
        candidates=[
            CheckpointResult(
                checkpoint="checkpoint-61",
                temperature=0.7,
                chosen=4 if promoted else None,
                tests=[_test(n, shift, rng, passed=promoted and n >= 4) for n, shift in shifts.items()],
                curve=_curve("new", 0.7),
                sd_ratio=0.84,
                worth_at_serving=EquivalentN(2.4, 2.1, 2.8, beyond=False),
                worth_at_best=EquivalentN(2.2, 1.9, 2.6, beyond=False),
            )
        ],
    )


def _test(n: int, shift: float, rng: np.random.Generator, *, passed: bool) -> NonInferiorityTest:
    path = np.exp(np.cumsum(np.log1p(6.0 * np.clip(rng.normal(shift, 0.09, size=290), -0.16, 1))))
    path = path * max(1.0, 25 / path.max()) if passed else np.minimum(np.maximum(path, 1e-6), 19)
    return NonInferiorityTest(
        n=n,
        passed=passed,
        difference=Estimate(shift - 0.012, shift - 0.024, shift),
        gain_mean=shift,
        gain_sd=0.09,
        against="the old policy's best of 7 at temperature 0.4",
        wealth=float(path[-1]),
        highest_wealth=float(path.max()),
        crossed_at=int(np.argmax(path >= 20)) + 1 if passed else None,
        path=path.tolist(),
        fixed_sample_p=0.01 if passed else 0.2,
    )


def _pair(place: int) -> SideBySide:
    topics = ("tea", "sleep", "bread", "rain", "maps", "clocks", "salt", "glass", "ink", "trams", "moss", "kites")
    old = Answer(
        name="base", n=8, temperature=0.4, text=f"Well, {topics[place]}…\n\n1. <b>It</b> is", reward=0.4, tokens=31
    )
    new = Answer(name=NAME, n=4, temperature=0.7, text=f"Three things about {topics[place]}: …", reward=1.2, tokens=27)
    return SideBySide(messages=[{"role": "user", "content": f"Tell me about {topics[place]}."}], old=old, new=new)
