"""The figure of reward against N: the worth of one draw of the new policy, and the N that the gate chose."""

from __future__ import annotations

from markupsafe import Markup

from distill.evaluation.verdict import CurvePoint, Verdict
from distill.report.facts import Measured, NightFacts, SampleSummary
from distill.report.formats import fixed
from distill.report.svg import Margins, Plot, Spot, responsive, ticks
from distill.report.view import controls, curves_title, interval, new_samples, points, reward_at

WIDE, NARROW = (1000.0, 440.0), (360.0, 390.0)
MAX_NARROW_CHARACTERS = 11
NAMED_N = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def reward_curves(facts: NightFacts) -> Markup | None:
    """Plot the curves of both policies with their intervals, k* and both Ns; None where nothing was drawn."""
    verdict, measured = facts.verdict, facts.measured
    if verdict is None or measured is None or not any(points(verdict, each) for each in measured.sample_sets):
        return None

    def draw(size: Spot, narrow: bool) -> Plot:
        return _draw(verdict, measured, new_samples(facts), size, narrow=narrow)

    return responsive(draw, WIDE, NARROW, f"{curves_title(verdict)}. The table below the figure has every number.")


def _draw(verdict: Verdict, measured: Measured, new: SampleSummary | None, size: Spot, *, narrow: bool) -> Plot:
    curves = [(each, points(verdict, each)) for each in measured.sample_sets if points(verdict, each)]
    every = [point for _, curve in curves for point in curve]
    most = max(point.n for point in every)
    low, high = min(point.low for point in every), max(point.high for point in every)
    room = (high - low) * 0.06 or 1.0
    low, high = low - 4 * room, high + room  # k* is written below the lowest curve
    margins = Margins(right=78 if narrow else 172)
    plot = Plot(size, (1, max(most, 2)), (low, high), margins=margins, log_x=True)
    named = [n for n in NAMED_N if n <= most and not (narrow and n in (6, 12, 24, 48))]
    plot.axes(
        "N, draws for one answer", "expected reward of the best of N", [(n, str(n)) for n in named], ticks(low, high)
    )

    labels: list[tuple[float, str, str]] = []
    for samples, curve in curves:
        if samples is new:
            continue
        kind = f"{samples.side} faint"
        plot.line(_spots(curve), kind)
        name = _name(samples, measured)
        if not narrow or len(name) <= MAX_NARROW_CHARACTERS:
            labels.append((curve[-1].mean, name, kind))
    control = [point for _, point in controls(verdict)]
    if control:
        _plot_curve(plot, control, "old")
        labels.append((control[-1].mean, "old, best" if narrow else "old, best temperature", "old"))
    curve = points(verdict, new) if new is not None else []
    if new is not None and curve:
        _plot_curve(plot, curve, "new")
        labels.append((curve[-1].mean, f"new, T {new.temperature:g}", "new"))
        _mark_equivalent(plot, verdict, reward_at(curve, 1), low, most)
    _mark_ns(plot, verdict, control, curve)
    plot.end_labels(labels)
    return plot


def _mark_equivalent(plot: Plot, verdict: Verdict, level: float, low: float, most: int) -> None:
    """Mark k*: from the new policy's single draw to the old curve, and down to the axis."""
    one = verdict.best.worth_at_best
    place = min(max(one.value, 1.0), float(most))
    plot.rule((1, level), (place, level), "mark dashed")
    plot.rule((place, level), (place, low), "mark dashed")
    pixel = plot.y.start - 5
    side, anchor = (-8, "end") if plot.x(place) > plot.width * 0.6 else (8, "start")
    plot.text(
        (plot.x(place) + side, pixel - 22),
        f"k* {'≥' if one.beyond else '='} {one.value:.2g}",
        "label mark strong",
        anchor=anchor,
    )
    plot.text((plot.x(place) + side, pixel - 6), f"95 %: {interval(one)}", "label mark", anchor=anchor)
    plot.rule((max(one.low, 1.0), low), (max(min(one.high, most), 1.0), low), "mark thick")
    plot.dot((1, level), "mark")


def _mark_ns(plot: Plot, verdict: Verdict, control: list[CurvePoint], new: list[CurvePoint]) -> None:
    """Mark both policies' N on their own curves."""
    for point in control:
        if point.n == verdict.n_now:
            spot = (float(point.n), point.mean)
            plot.dot(spot, "ring old", radius=5.5, hint=f"served until now: {fixed(spot[1])}")
            plot.text((plot.x(spot[0]) - 9, plot.y(spot[1]) + 27), f"N = {point.n}", "label old strong", anchor="end")
    if verdict.promote and new:
        spot = (float(verdict.n_new), reward_at(new, verdict.n_new))
        plot.dot(spot, "ring new", radius=5.5, hint=f"allowed now: {fixed(spot[1])}")
        place = (plot.x(spot[0]) - 9, plot.y(spot[1]) - 11)
        plot.text(place, f"N′ = {verdict.n_new}", "label new strong", anchor="end")


def _plot_curve(plot: Plot, curve: list[CurvePoint], kind: str) -> None:
    plot.band([(point.n, point.low, point.high) for point in curve], kind)
    plot.line(_spots(curve), kind)
    for spot in _spots(curve):
        plot.dot(spot, kind, radius=2.6, hint=f"N = {spot[0]:g}: {fixed(spot[1], 3)}")


def _name(samples: SampleSummary, measured: Measured) -> str:
    """Return the side, or the policy's own name where its side has several, and the temperature."""
    several = len({one.name for one in measured.sample_sets if one.side == samples.side}) > 1
    return f"{samples.name[-14:].lstrip('-') if several else samples.side}, T {samples.temperature:g}"


def _spots(curve: list[CurvePoint]) -> list[Spot]:
    return [(point.n, point.mean) for point in curve]
