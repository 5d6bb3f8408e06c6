"""A night's facts as a real one writes them, with numbers a person would believe: for the report's tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import log

import numpy as np

from distill.report.facts import (
    Answer,
    Bars,
    Collected,
    Control,
    Cost,
    Curve,
    Decision,
    EquivalentN,
    Guard,
    Interval,
    Judge,
    LossPoint,
    Measured,
    NightFacts,
    Point,
    PolicyVersion,
    Promoted,
    Side,
    SideBySide,
    Trained,
    Tried,
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
    """A whole night: promoted from 8 to 4, or kept for want of evidence."""
    rng = np.random.default_rng(seed)
    return NightFacts(
        run="2026-11-23T03-30-00",
        outcome="promoted" if promoted else "kept",
        headline="N 8 → 4: best of 4 from the new policy is no worse than best of 8 was"
        if promoted
        else "N stays 8: not enough evidence, about 240 more held-out prompts would settle it",
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
        decision=_decision(rng, promoted=promoted),
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
            "decision": None,
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
    rewards = {key: rng.normal(*level, size=2320) for key, level in LEVELS.items()}
    lengths = {key: np.clip(rng.gamma(3, 30, size=2320), 4, 128) for key in LEVELS}
    reward_edges = np.linspace(-4, 4, 33)
    length_edges = np.linspace(0, 128, 33)
    return Measured(
        prompts=290,
        draws=8,
        max_tokens=128,
        reward_model="model+reward",
        unit="standard deviations within a prompt of the old policy at temperature 1",
        curves=[_curve(*key) for key in LEVELS],
        controls=[
            Control(n=n, temperature=t, reward=_interval(LEVELS["old", t][0] + 0.9 * GAUSSIAN_MAX[n - 1]))
            for n, t in zip(range(1, 9), (0.4, 0.4, 0.4, 0.4, 0.7, 0.7, 0.7, 1.0), strict=True)
        ],
        equivalent_n=[
            EquivalentN(against="the old policy at its best temperature for each n", value=2.2, low=1.9, high=2.6),
            EquivalentN(against="the old policy at temperature 0.7", value=2.4, low=2.1, high=2.8),
        ],
        length_ratio=1.04,
        spread_ratio=0.84,
        rewards=[_bars(*key, values, reward_edges) for key, values in rewards.items()],
        lengths=[_bars(*key, values, length_edges) for key, values in lengths.items()],
    )


def _curve(side: Side, temperature: float) -> Curve:
    mean, sd = LEVELS[side, temperature]
    points = [
        Point(n=n, reward=_interval(mean + sd * gain), tokens=90 - 3.5 * log(n))
        for n, gain in enumerate(GAUSSIAN_MAX, start=1)
    ]
    return Curve(
        side=side,
        name="base" if side == "old" else "checkpoint-61",
        temperature=temperature,
        points=points,
        sd=sd,
        mean_tokens=90.0,
        truncated=0.21,
        distinct=0.97 if side == "old" else 0.93,
    )


def _interval(mean: float) -> Interval:
    return Interval(mean=mean, low=mean - 0.09, high=mean + 0.09)


def _bars(side: Side, temperature: float, values: np.ndarray, edges: np.ndarray) -> Bars:
    counts, _ = np.histogram(values, edges)
    name = "base" if side == "old" else "checkpoint-61"
    return Bars(side=side, name=name, temperature=temperature, edges=edges.tolist(), counts=counts.tolist())


def _decision(rng: np.random.Generator, *, promoted: bool) -> Decision:
    shifts = {7: 0.021, 6: 0.02, 5: 0.019, 4: 0.017 if promoted else 0.004, 3: 0.002, 2: -0.012, 1: -0.05}
    tried = []
    for n, shift in shifts.items():
        path = np.exp(np.cumsum(np.log1p(6.0 * np.clip(rng.normal(shift, 0.09, size=290), -0.16, 1))))
        passed = bool(promoted and n >= 4)
        path = np.maximum(path, 1e-6) if not passed else path * max(1.0, 25 / path.max())
        tried.append(
            Tried(
                checkpoint="checkpoint-61",
                n=n,
                passed=passed,
                difference=Interval(mean=shift - 0.012, low=shift - 0.024, high=shift),
                wealth=float(path.max()),
                path=path.tolist(),
                reason="" if passed else "the evidence did not reach 20",
            )
        )
    return Decision(
        promote=promoted,
        n_old=8,
        n_new=4 if promoted else None,
        checkpoint="checkpoint-61" if promoted else None,
        why="best of 4 is no worse than best of 8 was, by more than the worth of one sample"
        if promoted
        else "not enough evidence at any N′ below 8: about 240 more held-out prompts are needed",
        alpha=0.05,
        threshold=20.0,
        margin=0.012,
        more_prompts=None if promoted else 240,
        tried=tried,
        guards=[
            Guard(name="length", passed=True, detail="+4 % tokens", value=0.04, low=-0.15, high=0.15),
            Guard(name="truncation", passed=True, detail="21 % → 19 %", value=-0.02),
            Guard(name="repetition", passed=True, detail="3 % → 3 %", value=0.0),
            Guard(name="distinct answers", passed=True, detail="93 %", value=0.93, low=0.5),
            Guard(name="token entropy", passed=True, detail="4.1 bits", value=4.1, low=3.0),
        ],
        judge=Judge(name="judge", agrees=True, difference=Interval(mean=0.008, low=-0.002, high=0.018)),
    )


def _pair(place: int) -> SideBySide:
    topics = ("tea", "sleep", "bread", "rain", "maps", "clocks", "salt", "glass", "ink", "trams", "moss", "kites")
    old = Answer(
        name="base", n=8, temperature=0.4, text=f"Well, {topics[place]}…\n\n1. <b>It</b> is", reward=0.4, tokens=31
    )
    new = Answer(name=NAME, n=4, temperature=0.7, text=f"Three things about {topics[place]}: …", reward=1.2, tokens=27)
    return SideBySide(messages=[{"role": "user", "content": f"Tell me about {topics[place]}."}], old=old, new=new)
