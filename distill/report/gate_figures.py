"""The gate's figures: the e-process of each N′, and each difference with the margin."""

from __future__ import annotations

from math import isfinite, nan

from markupsafe import Markup

from distill.evaluation.verdict import NonInferiorityTest, Verdict
from distill.report.formats import fixed, signed
from distill.report.svg import Margins, Plot, Spot, powers, responsive, ticks
from distill.report.view import evidence_title, is_chosen

WIDE, NARROW = (1000.0, 360.0), (360.0, 340.0)
FOREST = (260.0, 30.0)
MAX_POINTS = 400
FLOOR, CEILING = 1e-3, 1e6
"""Wealth outside is drawn at the border: so far out, every N′ is equally hopeless or equally settled."""


def evidence_paths(verdict: Verdict) -> Markup | None:
    """Plot the e-process of every N′ of the best checkpoint, with the threshold; None where there is no path."""
    shown = [test for test in verdict.best.tests if test.path]
    if not shown:
        return None

    def draw(size: Spot, narrow: bool) -> Plot:
        return _draw(verdict, shown, size, narrow=narrow)

    return responsive(draw, WIDE, NARROW, f"{evidence_title(verdict)}. The table has every N′.")


def checkpoints_sharing_alpha(verdict: Verdict) -> int:
    """Return the number of checkpoints that share α: each of them needs that many times 1/α."""
    return max(round(verdict.threshold * verdict.alpha), 1)


def forest(verdict: Verdict, test: NonInferiorityTest, *, chosen: bool) -> Markup:
    """Plot one N′'s interval on a scale that all N′ share, with equality and the margin that H0 allows."""
    every = [each.difference for result in verdict.candidates for each in result.tests]
    ends = [end for each in every for end in (each.low, each.high) if isfinite(end)]
    low, high = min([*ends, -verdict.delta * 1.5, 0.0]), max([*ends, verdict.delta * 0.5])
    room = (high - low) * 0.04 or 1.0
    plot = Plot(FOREST, (low - room, high + room), (0, 1), margins=Margins(top=0, right=2, bottom=0, left=2))
    plot.rule((0, 0), (0, 1), "tick-mark")
    plot.rule((-verdict.delta, 0), (-verdict.delta, 1), "mark dashed")
    kind, difference = "new" if chosen else "old", test.difference
    if isfinite(difference.low) and isfinite(difference.high):
        plot.rule((difference.low, 0.5), (difference.high, 0.5), f"line {kind}")
        plot.dot((difference.mean, 0.5), kind, radius=4)
    between = f"{signed(difference.low)} to {signed(difference.high)}"
    return plot.svg("forest", f"{between}, the margin is at {signed(-verdict.delta)}")


def _draw(verdict: Verdict, shown: list[NonInferiorityTest], size: Spot, *, narrow: bool) -> Plot:
    values = [value for test in shown for value in test.path if isfinite(value) and value > 0]
    low = max(min([*values, 0.1]), FLOOR)
    high = min(max([*values, verdict.threshold * 3]), CEILING)
    last = max(len(test.path) for test in shown)
    margins = Margins(right=64 if narrow else 90, left=70)
    plot = Plot(size, (0, last), (low, high), margins=margins, log_y=True)
    places = [(place, f"{place:,.0f}") for place in ticks(0, last, 3 if narrow else 6)]
    plot.axes("conversations seen", "evidence (log scale)", places, powers(low, high))
    plot.rule((0, verdict.threshold), (last, verdict.threshold), "mark dashed")
    words = f"{verdict.threshold:g}: enough evidence"
    plot.text((plot.x.start + 6, plot.y(verdict.threshold) - 6), words, "label mark strong")
    labels = []
    step = max(1, -(-last // MAX_POINTS))
    for test in sorted(shown, key=lambda test: is_chosen(verdict, verdict.best, test)):
        kind = "new" if is_chosen(verdict, verdict.best, test) else "old faint"
        reached = test.crossed_at
        spots = [(0.0, 1.0)]
        spots += [(float(place), value if value >= low else nan) for place, value in enumerate(test.path, start=1)]
        plot.line([*spots[:-1:step], spots[-1]], "old faint")
        if reached is not None:
            plot.line([*spots[:reached:step], spots[reached]], kind)
            hint = f"N′ = {test.n} reached {fixed(verdict.threshold, 0)} after {reached} conversations"
            plot.dot((reached, verdict.threshold), kind, radius=4, hint=hint)
        labels.append((test.path[-1] if isfinite(test.path[-1]) else high, f"N′ = {test.n}", kind))
    plot.end_labels(labels)
    return plot
