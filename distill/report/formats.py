"""Formats of numbers and texts: the page's filters."""

from __future__ import annotations

from math import isfinite

NOTHING = "n/a"
SHOWN_CHARACTERS = 20_000
"""Longest answer that the page shows in full; report.json has all of it."""

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_REPLACED = dict.fromkeys([*range(0x80, 0xA0), 0x202D, 0x202E, 0xFFFE, 0xFFFF], 0xFFFD)
"""HTML forbids most of them; U+202D and U+202E would reverse the text that follows them."""


def count(value: float) -> str:
    """12,345."""
    return f"{value:,.0f}" if isfinite(value) else NOTHING


def fixed(value: float | None, places: int = 2) -> str:
    """0.42, with a true minus sign."""
    if value is None or not isfinite(value):
        return NOTHING
    if abs(value) >= 1e9:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:,.{places}f}".replace("-", "−")


def signed(value: float, places: int = 3) -> str:
    """+0.017 or −0.017."""
    return f"{value:+,.{places}f}".replace("-", "−") if isfinite(value) else NOTHING


def percent(share: float | None) -> str:
    """21 %, on one line."""
    return NOTHING if share is None or not isfinite(share) else f"{100 * share:.0f}\u00a0%".replace("-", "−")


def change(ratio: float | None) -> str:
    """+4 % for 1.04."""
    return NOTHING if ratio is None or not isfinite(ratio) else f"{100 * (ratio - 1):+.0f}\u00a0%".replace("-", "−")


def wealth(value: float) -> str:
    """Format an e-process in three figures, from below 0.001 to above a million."""
    if not isfinite(value):
        return "∞" if value > 0 else NOTHING
    if value < 0.001:
        return "< 0.001"
    if value >= 1e6:
        return "> 1,000,000"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    """1 h 52 min, 23 min 53 s, or 2.1 s."""
    if not isfinite(value):
        return NOTHING
    if value < 59.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(value: float) -> str:
    """2.7 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def reason(name: str) -> str:
    """near_duplicate → near duplicate."""
    return name.replace("_", " ")


def sentence(words: str) -> str:
    """Start with a capital and end with a full stop."""
    return words[:1].upper() + words[1:] + ("" if words.endswith((".", "!", "?")) else ".")


def visible(text: str) -> str:
    """Return text that HTML allows: control characters as their pictures, lone surrogates replaced."""
    sound = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")
    return sound.translate(_PICTURES | _REPLACED)


def clipped(text: str) -> str:
    """Return the beginning of a text that is too long for a page."""
    return text[:SHOWN_CHARACTERS]


FILTERS = {
    "count": count,
    "fixed": fixed,
    "signed": signed,
    "percent": percent,
    "wealth": wealth,
    "seconds": seconds,
    "size": size,
    "sentence": sentence,
    "clipped": clipped,
}
