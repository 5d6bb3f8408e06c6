"""Reward against N: what one draw of the new policy is worth, and the N that the gate chose."""

from __future__ import annotations

from markupsafe import Markup

from distill.report.facts import Curve, Interval, Measured, NightFacts
from distill.report.story import bounds, curves_title, equivalent, new_curve, reward_at
from distill.report.svg import Margins, Plot, Spot, responsive, ticks
from distill.report.words import fixed

WIDE, NARROW = (1000.0, 440.0), (360.0, 390.0)
NARROW_CHARACTERS = 11
NAMED_N = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def reward_curves(facts: NightFacts) -> Markup | None:
    """The curves of both policies with their intervals, k* and both Ns; None where nothing was drawn."""
    measured = facts.measured
    if measured is None or not any(curve.points for curve in measured.curves):
        return None

    def draw(size: Spot, narrow: bool) -> Plot:
        return _draw(facts, measured, size, narrow=narrow)

    return responsive(draw, WIDE, NARROW, f"{curves_title(facts)}. The table below the figure has every number.")


def _draw(facts: NightFacts, measured: Measured, size: Spot, *, narrow: bool) -> Plot:
    most = max(point.n for curve in measured.curves for point in curve.points)
    intervals = [point.reward for curve in measured.curves for point in curve.points]
    low = min(interval.low for interval in intervals)
    high = max(interval.high for interval in intervals)
    room = (high - low) * 0.06 or 1.0
    low, high = low - 4 * room, high + room  # k* is written below the lowest curve
    margins = Margins(right=78 if narrow else 172)
    plot = Plot(size, (1, max(most, 2)), (low, high), margins=margins, log_x=True)
    named = [n for n in NAMED_N if n <= most and not (narrow and n in (6, 12, 24, 48))]
    plot.axes("N, draws for one answer", "expected reward of the pick", [(n, str(n)) for n in named], ticks(low, high))

    new = new_curve(facts)
    labels: list[tuple[float, str, str]] = []
    for curve in (curve for curve in measured.curves if curve.points and curve is not new):
        kind = f"{curve.side} faint"
        plot.line(_spots(curve), kind)
        name = _name(curve, measured)
        if not narrow or len(name) <= NARROW_CHARACTERS:
            labels.append((curve.points[-1].reward.mean, name, kind))
    if measured.controls:
        best = [(control.n, control.reward) for control in measured.controls]
        plot.band(_around(best), "old")
        _joined(plot, [(n, reward.mean) for n, reward in best], "old")
        labels.append((best[-1][1].mean, "old, best" if narrow else "old, best temperature", "old"))
    if new is not None and new.points:
        plot.band(_around([(point.n, point.reward) for point in new.points]), "new")
        _joined(plot, _spots(new), "new")
        labels.append((new.points[-1].reward.mean, f"new, T {new.temperature:g}", "new"))
        _mark_equivalent(plot, measured, new, low, most)
    _mark_ns(plot, facts, measured, new)
    plot.end_labels(labels)
    return plot


def _mark_equivalent(plot: Plot, measured: Measured, new: Curve, low: float, most: int) -> None:
    """From the new policy's single draw to where the old curve reaches it, and down to the axis."""
    one = equivalent(measured)
    if one is None:
        return
    level = reward_at(new, 1)
    place = min(max(one.value, 1.0), float(most))
    plot.rule((1, level), (place, level), "mark dashed")
    plot.rule((place, level), (place, low), "mark dashed")
    pixel = plot.y.start - 5
    side, anchor = (-8, "end") if plot.x(place) > plot.width * 0.6 else (8, "start")
    plot.text(
        (plot.x(place) + side, pixel - 22),
        f"k* {'≥' if one.at_least else '='} {one.value:.2g}",
        "label mark strong",
        anchor=anchor,
    )
    between = f"95 %: {bounds(one)}"
    plot.text((plot.x(place) + side, pixel - 6), between, "label mark", anchor=anchor)
    plot.rule((max(one.low, 1.0), low), (max(min(one.high, most), 1.0), low), "mark thick")
    plot.dot((1, level), "mark")


def _mark_ns(plot: Plot, facts: NightFacts, measured: Measured, new: Curve | None) -> None:
    """Both policies' N on their own curves."""
    n_old = facts.decision.n_old if facts.decision else facts.serving.n
    for control in measured.controls:
        if control.n == n_old:
            spot = (float(n_old), control.reward.mean)
            plot.dot(spot, "ring old", radius=5.5, hint=f"served until now: {fixed(spot[1])}")
            plot.text((plot.x(spot[0]) - 9, plot.y(spot[1]) + 27), f"N = {n_old}", "label old strong", anchor="end")
    if facts.decision and facts.decision.n_new is not None and new is not None:
        n_new = facts.decision.n_new
        spot = (float(n_new), reward_at(new, n_new))
        plot.dot(spot, "ring new", radius=5.5, hint=f"allowed now: {fixed(spot[1])}")
        plot.text((plot.x(spot[0]) - 9, plot.y(spot[1]) - 11), f"N′ = {n_new}", "label new strong", anchor="end")


def _joined(plot: Plot, spots: list[Spot], kind: str) -> None:
    plot.line(spots, kind)
    for spot in spots:
        plot.dot(spot, kind, radius=2.6, hint=f"N = {spot[0]:g}: {fixed(spot[1], 3)}")


def _name(curve: Curve, measured: Measured) -> str:
    """By its side, or where that has several adapters or checkpoints, by its own name."""
    several = len({one.name for one in measured.curves if one.side == curve.side}) > 1
    return f"{curve.name[-14:].lstrip('-') if several else curve.side}, T {curve.temperature:g}"


def _spots(curve: Curve) -> list[Spot]:
    return [(point.n, point.reward.mean) for point in curve.points]


def _around(points: list[tuple[int, Interval]]) -> list[tuple[float, float, float]]:
    return [(n, reward.low, reward.high) for n, reward in points]
