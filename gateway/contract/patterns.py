"""Regular expressions of schemas, read far enough to bound them and to recognize the simple ones.

The reader knows the syntax of JavaScript, which JSON Schema prescribes. It takes time linear in the pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_CHARS = 2_000  # longer patterns are not read
_MOST_GROUPS = 40  # one within another
_CEILING = 10**15
_QUANTIFIER = re.compile(r"\{([0-9]+)(?:,([0-9]*))?\}")
_GROUP = re.compile(r"\((?:\?:|\?P?<[A-Za-z_]\w*>)?(?!\?)")
_NUMBERED = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")
_CLASSES = {"d": "0-9", "w": "a-zA-Z0-9_", "s": " "}
_KNOWN_ESCAPES = frozenset("dwsDWSnrtfvxu")
_MOST_IN_RANGE = 1_000
# A JSON string holds these only with an escape, which a pattern does not expect.
_NOT_IN_JSON = frozenset('"\\')
_NOT_SIMPLE = frozenset('"\\^$')
_SPECIAL = frozenset(".*+?()[]{}|-")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Facts about one regular expression.

    Attributes:
        size: Its parts once every counted repeat is written out.
        repeats: The largest product of counted repeats that lie one within another.
        nested: Such a product of at least two repeats; 1 if none lies within another.
        portable: Anchored at both ends, with nothing but what every server's engine knows.
        simple: The expression between ``^`` and ``$`` if it has only literals, classes of plain characters, groups,
            alternatives and repeats, none of which matches what JSON must escape; else None.
    """

    size: int
    repeats: int
    nested: int
    portable: bool
    simple: str | None


class Unreadable(ValueError):
    """The text is no regular expression, or one that is too long or too deep."""


@dataclass(frozen=True, slots=True)
class _Part:
    size: int = 0
    repeats: int = 1
    nested: int = 1
    portable: bool = True
    text: str | None = ""


def read_pattern(pattern: str) -> Pattern:
    """Read a pattern; raise ``Unreadable`` if it is no regular expression, too long, or too deep."""
    if len(pattern) > MOST_CHARS:
        raise Unreadable(f"longer than {MOST_CHARS} characters")
    reader = _Reader(pattern)
    part, alternatives = reader.alternatives(depth=0)
    if reader.position < len(pattern):
        raise Unreadable("a closing bracket too many")
    anchored = reader.opens and reader.closes and alternatives == 1
    portable = anchored and part.portable
    return Pattern(part.size, part.repeats, part.nested, portable, part.text if portable else None)


class _Reader:
    """A recursive-descent reader; ``opens`` and ``closes``: an anchor stands at the pattern's very start or end."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.position = 0
        self.opens = self.closes = False

    def alternatives(self, depth: int) -> tuple[_Part, int]:
        """Return the alternatives up to a closing bracket or the end, as one part, and their number."""
        if depth > _MOST_GROUPS:
            raise Unreadable("groups are nested too deep")
        parts = [self._sequence(depth)]
        while self._peek() == "|":
            self.position += 1
            parts.append(self._sequence(depth))
        texts = [part.text for part in parts if part.text]
        # An empty alternative is rare, and not every server's expressions know it.
        text = "|".join(texts) if len(texts) == len(parts) else parts[0].text if len(parts) == 1 else None
        return _joined(parts, text), len(parts)

    def _sequence(self, depth: int) -> _Part:
        parts: list[_Part] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated(self._atom(depth)))
        texts = [part.text for part in parts]
        return _joined(parts, None if None in texts else "".join(text or "" for text in texts))

    def _repeated(self, part: _Part) -> _Part:
        """Return the part with the quantifiers after it; only the first can be part of a simple expression."""
        simple = True
        while (sign := self._quantifier()) is not None:
            times = 1
            if (counted := _QUANTIFIER.fullmatch(sign)) is not None:
                least = int(counted[1])
                most = int(counted[2] or least)
                if most < least:
                    raise Unreadable("a repeat whose least is above its most")
                times = max(most, 1)
            self.position += len(sign)
            if self._peek() == "?":  # lazy: the same texts match
                self.position += 1
            repeats = min(part.repeats * times, _CEILING)
            nested = repeats if times > 1 and part.repeats > 1 else part.nested
            text = f"{part.text}{sign}" if simple and part.text else None
            portable = part.portable and simple
            part, simple = _Part(min(part.size * times, _CEILING), repeats, nested, portable, text), False
        return part

    def _quantifier(self) -> str | None:
        sign = self._peek()
        if sign == "{":
            counted = _QUANTIFIER.match(self.pattern, self.position)
            return None if counted is None else counted[0]
        return sign if sign in ("*", "+", "?") else None

    def _atom(self, depth: int) -> _Part:
        character = self._peek()
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._class()
        self.position += 1
        if character == "\\":
            known = self._peek() in _KNOWN_ESCAPES or not self._peek().isalnum()
            return _Part(1, portable=known, text=self._escape())
        if character in "^$":
            return self._anchor(character)
        if character in "*+?":
            raise Unreadable("nothing to repeat")
        return _Part(1, text=None if character == "." else _literal(character))

    def _anchor(self, sign: str) -> _Part:
        if sign == "^" and self.position == 1:
            self.opens = True
        elif sign == "$" and self.position == len(self.pattern):
            self.closes = True
        else:
            return _Part(portable=False, text=None)
        return _Part()

    def _group(self, depth: int) -> _Part:
        opening = _GROUP.match(self.pattern, self.position)
        simple = opening is not None
        # Of look-arounds, flags and the like only the brackets are understood.
        self.position = opening.end() if opening is not None else self.position + 2
        if not simple:
            while self._peek() and self._peek() in "?=!<>:Pimsuxa-":
                self.position += 1
        inner, _ = self.alternatives(depth + 1)
        if self._peek() != ")":
            raise Unreadable("a group that does not end")
        self.position += 1
        text = f"({inner.text})" if simple and inner.text else None
        return _Part(inner.size, inner.repeats, inner.nested, inner.portable and simple, text)

    def _class(self) -> _Part:
        """Read a class of characters; it is simple if it lists plain ones and does not exclude."""
        self.position += 1
        text: str | None = ""
        if self._peek() == "^":
            self.position += 1
            text = None
        start = ""  # the character that a range could begin with
        while (character := self._peek()) != "]":
            if not character:
                raise Unreadable("a class that does not end")
            if character == "-" and start and self._ahead(1) not in ("", "]"):
                self.position += 1
                member, start = self._range_end(start), ""
            else:
                member, start = self._member()
            text = None if text is None or member is None else text + member
        self.position += 1
        return _Part(1, text=f"[{text}]" if text else None)

    def _member(self) -> tuple[str | None, str]:
        """Return one member of a class as a simple expression has it, and its character."""
        character = self._peek()
        self.position += 1
        if character != "\\":
            return _literal(character), character
        named = self._peek()
        member = self._escape(in_class=True)
        return member, "" if member is None or named in _CLASSES else member[-1]

    def _range_end(self, start: str) -> str | None:
        """Return the ``-z`` of ``a-z``; None if the range holds what JSON must escape, or far too many characters."""
        member, end = self._member()
        if member is None or not end:
            return None
        first, last = ord(start), ord(end)
        if first > last:
            raise Unreadable("a range that runs backwards")
        holds = any(first <= ord(sign) <= last for sign in _NOT_IN_JSON)
        return None if holds or last - first >= _MOST_IN_RANGE else f"-{member}"

    def _escape(self, *, in_class: bool = False) -> str | None:
        """Return what follows a backslash, as a simple expression has it."""
        character = self._peek()
        if not character:
            raise Unreadable("it ends with a backslash")
        numbered = _NUMBERED.match(self.pattern, self.position)
        if numbered is not None:
            self.position = numbered.end()
            meant = chr(int(numbered[1] or numbered[2], 16))
            return _literal(meant)
        self.position += 1
        if character in _CLASSES:
            return _CLASSES[character] if in_class else f"[{_CLASSES[character]}]"
        return None if character.isalnum() else _literal(character)

    def _peek(self) -> str:
        return self._ahead(0)

    def _ahead(self, count: int) -> str:
        return self.pattern[self.position + count : self.position + count + 1]


def _joined(parts: list[_Part], text: str | None) -> _Part:
    return _Part(
        min(sum(part.size for part in parts), _CEILING),
        max((part.repeats for part in parts), default=1),
        max((part.nested for part in parts), default=1),
        all(part.portable for part in parts),
        text,
    )


def _literal(character: str) -> str | None:
    """Return the character in a simple expression; None if JSON must escape it, or it would look like an anchor."""
    if character in _NOT_SIMPLE or not character.isprintable():
        return None
    return f"\\{character}" if character in _SPECIAL else character
