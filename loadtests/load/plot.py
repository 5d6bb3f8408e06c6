"""Plots of measurements, drawn as the night's report draws them: on one self-contained page, or as one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from distill.report.svg import Margins, Plot, Spot, ticks

SIZE = (900.0, 260.0)
PANEL = (440.0, 230.0)

STYLE = """
:root { --old: #64748b; --new: #0f766e; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 960px; margin: 2em auto; padding: 0 1em; color: #1c2430; background: #fff; }
svg { width: 100%; height: auto; overflow: visible; }
svg text { fill: #5b6675; font-size: 13px; }
svg .label.old { fill: var(--old); } svg .label.new { fill: var(--new); font-weight: 600; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .old { stroke: var(--old); } .new { stroke: var(--new); }
svg text.label { stroke: none; } .grid { stroke: #e5e9ef; } .axis { stroke: #9aa5b4; }
"""

Curve = tuple[str, str, Sequence[Spot]]
"""Name, class ("old", "new"), and its (second, value) pairs."""


def figure(title: str, unit: str, curves: Sequence[Curve]) -> Markup:
    """Draw curves over time, from zero up."""
    spots = [spot for _, _, line in curves for spot in line]
    last, high = max((x for x, _ in spots), default=1.0) or 1.0, max((y for _, y in spots), default=1.0) * 1.05 or 1.0
    plot = Plot(SIZE, (0.0, last), (0.0, high), margins=Margins(left=64, right=110))
    plot.axes("seconds", unit, [(place, f"{place:g}") for place in ticks(0.0, last, 8)], ticks(0.0, high, 4))
    for _, kind, line in curves:
        plot.line(line, kind)
    plot.end_labels([(line[-1][1], name, kind) for name, kind, line in curves if line])
    return Markup("<h2>{}</h2>").format(title) + plot.svg("wide", f"{title}, {unit}")


def panels(plots: Sequence[Plot], label: str) -> str:
    """Draw plots of ``PANEL`` size in one SVG file, two in a row; ``label`` describes it for screen readers."""
    width, height = PANEL
    drawn = "".join(plot.group((k % 2 * width, k // 2 * height)) for k, plot in enumerate(plots))
    box = f'viewBox="0 0 {2 * width:g} {-(-len(plots) // 2) * height:g}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{escape(label)}">'
    return f'{opening}<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>{drawn}</svg>\n'


def page(title: str, about: Mapping[str, object], figures: Sequence[Markup]) -> str:
    """Render a page of figures, under the machine and the settings they were measured with."""
    facts = ", ".join(f"{name} {value}" for name, value in about.items())
    head = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    )
    return f"{head}\n<h1>{escape(title)}</h1>\n<p>{escape(facts)}</p>\n" + "\n".join(figures) + "\n</html>\n"
