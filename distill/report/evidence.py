"""The gate's figures: the e-process of each N′, and each difference against the margin."""

from __future__ import annotations

from math import isfinite, nan

from markupsafe import Markup

from distill.report.facts import Decision, Tried
from distill.report.story import crossing, evidence_title
from distill.report.svg import Margins, Plot, Spot, powers, responsive, ticks
from distill.report.words import fixed, signed, wealth

WIDE, NARROW = (1000.0, 360.0), (360.0, 340.0)
FOREST = (260.0, 30.0)
FLOOR, CEILING = 1e-3, 1e6
"""Wealth outside is drawn at the border: that far out, one N′ is as hopeless, or as settled, as another."""


def evidence_paths(decision: Decision, checkpoint: str | None, prompts: int) -> Markup | None:
    """The e-process of every N′ of the judged checkpoint, with the line it must reach; None where none was drawn."""
    shown = [one for one in tried_of(decision, checkpoint) if one.path]
    if not shown:
        return None

    def draw(size: Spot, narrow: bool) -> Plot:
        return _draw(decision, shown, max(prompts, 1), size, narrow=narrow)

    return responsive(draw, WIDE, NARROW, f"{evidence_title(decision)}. The table has every N′.")


def tried_of(decision: Decision, checkpoint: str | None) -> list[Tried]:
    """What the gate tried of one checkpoint, the largest N′ first."""
    return sorted((one for one in decision.tried if one.checkpoint == checkpoint), key=lambda one: -one.n)


def shares(decision: Decision) -> int:
    """How many checkpoints share α equally: each of them needs that many times 1/α."""
    return max(round(decision.threshold * decision.alpha), 1)


def is_chosen(decision: Decision, one: Tried) -> bool:
    """Whether this is what was promoted."""
    return decision.promote and (one.checkpoint, one.n) == (decision.checkpoint, decision.n_new)


def forest(decision: Decision, one: Tried) -> Markup:
    """One N′: its interval on a scale that all of them share, with equality and the margin that H0 allows."""
    ends = [end for each in decision.tried for end in (each.difference.low, each.difference.high) if isfinite(end)]
    low, high = min([*ends, -decision.margin * 1.5, 0.0]), max([*ends, decision.margin * 0.5])
    room = (high - low) * 0.04 or 1.0
    plot = Plot(FOREST, (low - room, high + room), (0, 1), margins=Margins(top=0, right=2, bottom=0, left=2))
    plot.rule((0, 0), (0, 1), "tick-mark")
    plot.rule((-decision.margin, 0), (-decision.margin, 1), "mark dashed")
    kind = "new" if is_chosen(decision, one) else "old"
    if isfinite(one.difference.low) and isfinite(one.difference.high):
        plot.rule((one.difference.low, 0.5), (one.difference.high, 0.5), f"line {kind}")
        plot.dot((one.difference.mean, 0.5), kind, radius=4)
    between = f"{signed(one.difference.low)} to {signed(one.difference.high)}"
    return plot.svg("forest", f"{between}, the margin is at {signed(-decision.margin)}")


def _draw(decision: Decision, shown: list[Tried], prompts: int, size: Spot, *, narrow: bool) -> Plot:
    values = [value for one in shown for value in one.path if isfinite(value) and value > 0]
    low = max(min([*values, 0.1]), FLOOR)
    high = min(max([*values, decision.threshold * 3]), CEILING)
    margins = Margins(right=64 if narrow else 90, left=70)
    plot = Plot(size, (0, prompts), (low, high), margins=margins, log_y=True)
    places = [(place, f"{place:,.0f}") for place in ticks(0, prompts, 3 if narrow else 6)]
    plot.axes("held-out prompts looked at", "evidence W (log scale)", places, powers(low, high))
    plot.rule((0, decision.threshold), (prompts, decision.threshold), "mark dashed")
    words = f"{shares(decision)}/α = {decision.threshold:g}: enough"
    plot.text((plot.x.start + 6, plot.y(decision.threshold) - 6), words, "label mark strong")
    labels = []
    for one in sorted(shown, key=lambda one: is_chosen(decision, one)):
        kind = "new" if is_chosen(decision, one) else "old faint"
        reached = crossing(one, decision.threshold, prompts)
        spots = [(0.0, 1.0)]
        spots += [(place / len(one.path) * prompts, value) for place, value in enumerate(one.path, start=1)]
        shown_spots = [(x, value if value >= low else nan) for x, value in spots]
        plot.line(shown_spots, "old faint")
        plot.line([spot for spot in shown_spots if reached is None or spot[0] <= reached], kind)
        labels.append((one.path[-1] if isfinite(one.path[-1]) else high, f"N′ = {one.n}", kind))
        if reached is not None:
            hint = f"N′ = {one.n} reached {fixed(decision.threshold, 0)} after about {reached} prompts"
            plot.dot((reached, decision.threshold), kind, radius=4, hint=f"{hint}; W = {wealth(one.wealth)}")
    plot.end_labels(labels)
    return plot
