"""Nights that went every other way: broken off, empty, refused, first of all, hostile, numerically absurd."""

from __future__ import annotations

from datetime import timedelta
from math import inf, nan
from typing import Any

from distill.report.facts import (
    Answer,
    Collected,
    Guard,
    Interval,
    Judge,
    NightFacts,
    PolicyVersion,
    SideBySide,
)
from tests.distill.report.a_night import BEGAN, NAME, finished_night, night_without_training

HOSTILE = (
    "<script>alert('pwned')</script><img src=http://evil.example/x onerror=alert(1)></td></table></body>"
    "\"'`{{ 7 * 7 }}{% raw %}<!-- ]]> &lt;b&gt; \x00\x07\u202eright to left\u2028 😀 é 漢字 ‮ https://evil.example/"
)
NOTHING: dict[str, Any] = {"trained": None, "measured": None, "decision": None, "promoted": None, "samples": []}


def unfinished_at_once() -> NightFacts:
    """Redis was gone before the first step ended."""
    return finished_night().model_copy(
        update={
            **NOTHING,
            "outcome": "unfinished",
            "headline": "collect failed: Redis at redis://127.0.0.1:6379 does not answer",
            "collected": None,
            "history": [],
            "costs": [],
            "commit": None,
            "data_hash": None,
            "versions": {},
            "settings": {},
            "resumed": 3,
        }
    )


def unfinished_after_training() -> NightFacts:
    """The backend went away while answers were drawn."""
    night = finished_night()
    update = {"outcome": "unfinished", "headline": "draw failed: no backend answers at http://127.0.0.1:8080"}
    return night.model_copy(update={**NOTHING, **update, "trained": night.trained, "costs": night.costs[:3]})


def no_draws() -> NightFacts:
    """Nothing was drawn: no held-out prompts."""
    night = finished_night(promoted=False)
    assert night.measured is not None
    assert night.decision is not None
    nothing: dict[str, Any] = {"curves": [], "controls": [], "equivalent_n": [], "rewards": [], "lengths": []}
    empty = {"length_ratio": None, "spread_ratio": None, "prompts": 0}
    decision: dict[str, Any] = {
        "tried": [],
        "guards": [],
        "judge": None,
        "why": "no held-out prompt was drawn",
        "more_prompts": None,
    }
    return night.model_copy(
        update={
            "headline": "N stays 8: no held-out prompts",
            "measured": night.measured.model_copy(update={**nothing, **empty}),
            "decision": night.decision.model_copy(update=decision),
            "samples": [],
        }
    )


def refused_by_guards() -> NightFacts:
    """The evidence sufficed, but answers grew too long and the held-out reward model objects."""
    night = finished_night()
    assert night.decision is not None
    guards = [
        Guard(name="length", passed=False, detail="+31 % tokens", value=0.31, high=0.15),
        *night.decision.guards[1:],
    ]
    against = Interval(mean=-0.031, low=-0.05, high=-0.012)
    decision = {
        "promote": False,
        "n_new": None,
        "why": "answers grew by 31 %, at most 15 % is allowed.",
        "checkpoint": None,
        "guards": guards,
        "judge": Judge(name="second judge", agrees=False, difference=against, detail="trained on other pairs"),
        "tried": [
            *night.decision.tried,
            *(one.model_copy(update={"checkpoint": "checkpoint-31", "passed": False, "reason": "looked at later"})
              for one in night.decision.tried),
        ],
    }  # fmt: skip
    return night.model_copy(
        update={
            "outcome": "kept",
            "headline": "N stays 8: the new answers are too long",
            "decision": night.decision.model_copy(update=decision),
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
    assert night.decision is not None
    assert night.trained is not None
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
            "decision": night.decision.model_copy(update={"why": HOSTILE, "guards": [], "judge": None}),
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
    """Loss and evidence left the numbers; one prompt, one draw, one record of each."""
    night = finished_night()
    assert night.decision is not None
    assert night.measured is not None
    assert night.trained is not None
    unknown = Interval(mean=nan, low=-inf, high=inf)
    curves = [curve.model_copy(update={"points": curve.points[:1], "sd": nan}) for curve in night.measured.curves]
    loss = [point.model_copy(update={"loss": nan, "gradient_norm": None}) for point in night.trained.loss]
    first, second, *_ = night.decision.tried
    tried = [
        first.model_copy(update={"wealth": inf, "path": [1.0, nan, inf], "difference": unknown}),
        second.model_copy(update={"wealth": 3e7, "path": [0.0, 3e7]}),
        second.model_copy(update={"n": 5, "wealth": 1e-9, "path": []}),
        second.model_copy(update={"n": 4, "wealth": nan, "path": [nan]}),
    ]
    bars = [one.model_copy(update={"counts": [0] * len(one.counts)}) for one in night.measured.rewards]
    equivalent = [night.measured.equivalent_n[0].model_copy(update={"at_least": True, "value": 8.0, "high": inf})]
    measured = {
        "curves": curves,
        "controls": night.measured.controls[:1],
        "rewards": bars,
        "lengths": [],
        "equivalent_n": equivalent,
    }
    return night.model_copy(
        update={
            "trained": night.trained.model_copy(update={"loss": loss, "peak_memory_bytes": None, "tokens_per_s": inf}),
            "measured": night.measured.model_copy(update=measured),
            "decision": night.decision.model_copy(update={"tried": tried, "n_new": None, "promote": False}),
            "costs": [cost.model_copy(update={"seconds": 0.0}) for cost in night.costs],
        }
    )


def trained_without_a_log() -> NightFacts:
    """Nothing was logged while training, the new policy has no curve, and no N′ was tried."""
    night = finished_night(promoted=False)
    assert night.trained is not None
    assert night.measured is not None
    assert night.decision is not None
    old = [curve for curve in night.measured.curves if curve.side == "old"]
    return night.model_copy(
        update={
            "trained": night.trained.model_copy(update={"loss": []}),
            "measured": night.measured.model_copy(update={"curves": old, "equivalent_n": []}),
            "decision": night.decision.model_copy(update={"tried": []}),
        }
    )


NIGHTS = {
    "promoted": finished_night,
    "kept": lambda: finished_night(promoted=False),
    "too-few": night_without_training,
    "unfinished-at-once": unfinished_at_once,
    "unfinished-after-training": unfinished_after_training,
    "no-draws": no_draws,
    "refused": refused_by_guards,
    "many-nights": after_many_nights,
    "hostile": hostile_night,
    "absurd": absurd_numbers,
    "without-a-log": trained_without_a_log,
}
