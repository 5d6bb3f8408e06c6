"""Small plots as inline SVG; the page's style sheet colours them.

Every mark has a class ("old", "new", …) instead of a colour, so that one style sheet serves light, dark and printed
pages. All text is escaped here. matplotlib and Altair were tried instead: the page became twice as large, rendering it
took seconds, and the labels of the curves still had to be placed by own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

from markupsafe import Markup

LINE_PX = 15
"""Smallest vertical distance of two labels."""

Spot = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Map values from ``low`` to ``high`` to pixels; values outside are drawn at the border.

    Attributes:
        low: Value at ``start``.
        high: Value at ``stop``.
        start: Pixel of ``low``.
        stop: Pixel of ``high``.
        log: Logarithmic scale.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = (log10(value) - log10(self.low)) / ((log10(self.high) - log10(self.low)) or 1.0)
        else:
            share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.stop - self.start)


@dataclass(frozen=True)
class Margins:
    """Margins around the plotting area, in pixels."""

    top: float = 30
    right: float = 14
    bottom: float = 42
    left: float = 46


class Plot:
    """One plotting area; marks are painted in the order in which they are added."""

    def __init__(
        self,
        size: Spot,
        x: Spot,
        y: Spot,
        *,
        margins: Margins | None = None,
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        self.width, self.height = size
        room = margins or Margins()
        self.x = Axis(*x, room.left, self.width - room.right, log_x)
        self.y = Axis(*y, self.height - room.bottom, room.top, log_y)
        self._marks: list[str] = []

    def axes(
        self, x_title: str, y_title: str, x_ticks: Sequence[Spot | tuple[float, str]], y_ticks: Iterable[float]
    ) -> None:
        """Draw grid, ticks and titles; the title of the vertical axis is horizontal, above it."""
        for value in y_ticks:
            self._segment((self.x.start, self.y(value)), (self.x.stop, self.y(value)), "grid")
            self.text((self.x.start - 7, self.y(value) + 4), number(value), "tick", anchor="end")
        for place, word in x_ticks:
            self._segment((self.x(place), self.y.start), (self.x(place), self.y.start + 4), "axis")
            self.text((self.x(place), self.y.start + 18), str(word), "tick", anchor="middle")
        self._segment((self.x.start, self.y.start), (self.x.stop, self.y.start), "axis")
        self.text((self.x.stop, self.y.start + 36), x_title, "title", anchor="end")
        self.text((4, 14), y_title, "title")

    def line(self, spots: Iterable[Spot], kind: str) -> None:
        """Draw straight lines from spot to spot, with a gap where a value is not finite."""
        path, pen = [], "M"
        for x, y in spots:
            if not (isfinite(x) and isfinite(y)):
                pen = "M"
                continue
            path.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        self._add(f'<path class="line {kind}" d="{"".join(path)}"/>')

    def band(self, spots: Iterable[tuple[float, float, float]], kind: str) -> None:
        """Fill the area between two curves, from (x, low, high)."""
        finite = [spot for spot in spots if all(map(isfinite, spot))]
        edge = [(x, low) for x, low, _ in finite] + [(x, high) for x, _, high in reversed(finite)]
        points = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in edge)
        self._add(f'<polygon class="band {kind}" points="{points}"/>')

    def dot(self, spot: Spot, kind: str, *, radius: float = 3.5, hint: str = "") -> None:
        """Draw a dot; ``hint`` is shown while the pointer is over it."""
        title = f"<title>{Markup.escape(hint)}</title>" if hint else ""
        place = f'cx="{self.x(spot[0]):.1f}" cy="{self.y(spot[1]):.1f}" r="{radius:g}"'
        self._add(f'<circle class="dot {kind}" {place}>{title}</circle>')

    def rule(self, start: Spot, stop: Spot, kind: str) -> None:
        """Draw a straight line between two points of the plot."""
        self._segment((self.x(start[0]), self.y(start[1])), (self.x(stop[0]), self.y(stop[1])), kind)

    def text(self, pixel: Spot, words: str, kind: str, *, anchor: str = "start") -> None:
        """Write text at a pixel of the figure."""
        place = f'x="{pixel[0]:.1f}" y="{pixel[1]:.1f}" text-anchor="{anchor}"'
        self._add(f'<text class="{kind}" {place}>{Markup.escape(words)}</text>')

    def end_labels(self, labels: Sequence[tuple[float, str, str]]) -> None:
        """Write names of curves at the right border, moved apart where they would overlap: (value, words, class)."""
        order = sorted(labels, key=lambda label: self.y(label[0]))
        places = apart([self.y(value) + 4 for value, _, _ in order], LINE_PX, self.y.start + 4)
        for place, (_, words, kind) in zip(places, order, strict=True):
            self.text((self.x.stop + 8, place), words, f"label {kind}")

    def svg(self, kind: str, label: str) -> Markup:
        """Return the figure; a screen reader reads ``label``."""
        box = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        opening = f'<svg class="{kind}" {box} role="img" aria-label="{Markup.escape(label)}">'
        return Markup(opening + "".join(self._marks) + "</svg>")  # noqa: S704 - each mark escapes its own texts

    def group(self, corner: Spot) -> Markup:
        """Return the figure as a part of a larger one, with its upper left corner at a pixel of that."""
        marks = "".join(self._marks)
        return Markup(f'<g transform="translate({corner[0]:g} {corner[1]:g})">{marks}</g>')  # noqa: S704 - as above

    def _segment(self, start: Spot, stop: Spot, kind: str) -> None:
        (x1, y1), (x2, y2) = start, stop
        self._add(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def _add(self, mark: str) -> None:
        self._marks.append(mark)


def responsive(draw: Callable[[Spot, bool], Plot], wide: Spot, narrow: Spot, label: str) -> Markup:
    """Draw a figure in two sizes, so that its text is legible on a desk and on a phone; the style sheet shows one.

    Args:
        draw: Draws the figure at a size; the second argument is True for the narrow one.
        wide: Size on a desktop screen and on paper, in pixels.
        narrow: Size on a phone, in pixels.
        label: Text for screen readers.
    """
    return draw(wide, False).svg("wide", label) + draw(narrow, True).svg("narrow", label)


def apart(places: Sequence[float], gap: float, last: float) -> list[float]:
    """Move ascending places apart to at least ``gap`` between neighbours, with none beyond ``last``."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = last
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers from ``low`` to ``high``, in steps of 1, 2 or 5."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    return [round(index * step, 10) for index in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def powers(low: float, high: float) -> list[float]:
    """Return powers of ten from ``low`` to ``high``; only every second or third of many."""
    exponents = range(ceil(log10(low) - 1e-9), floor(log10(high) + 1e-9) + 1)
    stride = max(1, ceil(len(exponents) / 6))
    return [10.0**exponent for exponent in exponents if exponent % stride == 0]


def number(value: float) -> str:
    """Format a tick's number: short, with a true minus sign."""
    return f"{value:,.10g}".replace("-", "−")
