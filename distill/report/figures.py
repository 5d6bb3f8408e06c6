"""The smaller figures: loss and gradient norm, histograms of both policies, and N over time."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from re import search

from markupsafe import Markup

from distill.report.facts import Bars, NightFacts, PolicyVersion, Trained
from distill.report.svg import Margins, Plot, Spot, responsive, ticks
from distill.report.view import MIN_VERSIONS, history_title, loss_title

WIDE, NARROW = (500.0, 270.0), (350.0, 240.0)
HISTORY_WIDE, HISTORY_NARROW = (1000.0, 230.0), (360.0, 220.0)
TREND_PARTS = 12
MAX_POINTS = 400
SHORT_S = 2 * 86_400


def loss_curve(facts: NightFacts) -> Markup | None:
    """Plot the loss by step, its trend, and the steps of the checkpoints."""
    if facts.trained is None:
        return None
    spots = [(float(point.step), point.loss) for point in facts.trained.loss]
    chosen = facts.verdict.checkpoint if facts.verdict else None
    unit = "loss, nats a token" if facts.trained.objective == "sft" else "loss"
    return _trajectory(facts.trained, spots, unit, loss_title(facts), chosen)


def gradient_norms(facts: NightFacts) -> Markup | None:
    """Plot the gradient norm by step, and its trend."""
    if facts.trained is None:
        return None
    spots = [
        (float(point.step), point.gradient_norm) for point in facts.trained.loss if point.gradient_norm is not None
    ]
    return _trajectory(facts.trained, spots, "gradient norm", "Gradient norm by step", None)


def _trajectory(trained: Trained, spots: list[Spot], unit: str, label: str, chosen: str | None) -> Markup | None:
    finite = [value for _, value in spots if isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    room = (high - low) * 0.08 or 1.0
    low, high = max(low - room, 0.0) if low >= 0 else low - room, high + 2 * room
    last = max(trained.steps, *(int(step) for step, _ in spots))
    thinned = spots[:: max(1, len(spots) // MAX_POINTS)]

    def draw(size: Spot, narrow: bool) -> Plot:
        plot = Plot(size, (0, last), (low, high))
        places = [(step, f"{step:,.0f}") for step in ticks(0, last, 4 if narrow else 6)]
        plot.axes("optimizer step", unit, places, ticks(low, high, 4))
        for name in trained.checkpoints:
            step = search(r"(\d+)$", name)
            if step is not None:
                kind = "mark" if name == chosen else "tick-mark"
                plot.rule((int(step[1]), low), (int(step[1]), high), f"{kind} dashed")
        plot.line(thinned, "new faint")
        plot.line(trend(spots), "new")
        return plot

    return responsive(draw, WIDE, NARROW, label)


def trend(spots: Sequence[Spot]) -> list[Spot]:
    """Return means of neighbouring finite points, which show the trend in the noise."""
    finite = [spot for spot in spots if isfinite(spot[1])]
    part = max(1, len(finite) // TREND_PARTS)
    groups = [finite[start : start + part] for start in range(0, len(finite), part)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def histograms(compared: Sequence[Bars], unit: str, label: str) -> Markup | None:
    """Plot the shares of samples of both policies in one figure; None where neither has any."""
    shown = [(bars, percentages(bars)) for bars in compared if any(bars.counts)]
    if not shown:
        return None
    left, right = min(bars.edges[0] for bars, _ in shown), max(bars.edges[-1] for bars, _ in shown)
    high = max(max(part) for _, part in shown) * 1.1

    def draw(size: Spot, narrow: bool) -> Plot:
        plot = Plot(size, (left, right), (0, high))
        places = [(place, f"{place:g}".replace("-", "−")) for place in ticks(left, right, 4 if narrow else 8)]
        plot.axes(unit, "share of samples, %", places, ticks(0, high, 4))
        for bars, part in shown:
            outline = _outline(bars.edges, part)
            plot.band([(x, 0.0, y) for x, y in outline], bars.side)
            plot.line([(outline[0][0], 0.0), *outline, (outline[-1][0], 0.0)], bars.side)
        return plot

    return responsive(draw, WIDE, NARROW, label)


def percentages(bars: Bars) -> list[float]:
    """Return the percentage of samples in each bin."""
    return [100 * value / sum(bars.counts) for value in bars.counts]


def _outline(edges: list[float], heights: list[float]) -> list[Spot]:
    corners: list[Spot] = []
    for left, right, height in zip(edges, edges[1:], heights, strict=False):
        corners += [(left, height), (right, height)]
    return corners


def n_over_nights(history: list[PolicyVersion], facts: NightFacts) -> Markup | None:
    """Plot N over time; None for fewer policies than make a figure."""
    if len(history) < MIN_VERSIONS:
        return None
    times = [version.created.timestamp() for version in history]
    first, last = min(times), max(facts.finished.timestamp(), *times)
    last += (last - first) * 0.03 or 1.0
    most = max(version.n for version in history)

    def draw(size: Spot, narrow: bool) -> Plot:
        plot = Plot(size, (first, last), (0, most * 1.2), margins=Margins(left=34, right=24))
        plot.axes("", "N, draws for one answer", _days(history, 2 if narrow else 6), ticks(0, most, 4))
        before = history[0].n
        for time, until, version in zip(times, [*times[1:], last], history, strict=True):
            kind = "new" if version.adapter else "old"
            plot.line([(time, before), (time, version.n), (until, version.n)], kind)
            hint = f"version {version.version}, {version.created:%Y-%m-%d %H:%M}: N = {version.n}, {version.reason}"
            plot.dot((time, version.n), kind, hint=hint)
            if version is history[0] or version.n != before:
                plot.text((plot.x(time) + 5, plot.y(version.n) - 8), str(version.n), "label strong")
            before = version.n
        return plot

    return responsive(draw, HISTORY_WIDE, HISTORY_NARROW, history_title(history))


def _days(history: list[PolicyVersion], most: int) -> list[tuple[float, str]]:
    """Return a few of the versions' dates, far enough apart not to overlap."""
    first, last = history[0].created.timestamp(), history[-1].created.timestamp()
    form = "%d %b" if last - first > SHORT_S else "%d %b %H:%M"
    chosen: list[tuple[float, str]] = []
    for version in history:
        time = version.created.timestamp()
        if not chosen or time - chosen[-1][0] >= max((last - first) / most, 1.0):
            chosen.append((time, f"{version.created:{form}}"))
    return chosen
