"""Patterns of schemas: their size, and which of them are simple."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.contract.patterns import MOST_CHARS, Unreadable, read_pattern


@pytest.mark.parametrize(
    ("pattern", "size", "repeats", "nested"),
    [
        ("abc", 3, 1, 1),
        ("a|bc", 3, 1, 1),
        ("a{3}", 3, 3, 1),
        ("a{3,7}", 7, 7, 1),
        ("a{3,}b*c+d?", 6, 3, 1),
        ("(ab{4}){5}", 25, 20, 20),
        ("(a{4}|b{9}){2}", 26, 18, 18),
        ("a{2}{3}", 6, 6, 6),
        ("(((a{0,100}){0,100}){0,100}){0,100}", 10**8, 10**8, 10**8),
        ("a{0,99999999999999999999}", 10**15, 10**15, 1),
        ("[a{3}]{2}", 2, 2, 1),
        (r"\{3}", 3, 1, 1),
        ("a{,3}", 5, 1, 1),
    ],
)
def test_repeats_are_multiplied_without_expansion(pattern: str, size: int, repeats: int, nested: int) -> None:
    found = read_pattern(pattern)
    assert (size, repeats, nested) == (found.size, found.repeats, found.nested)


@pytest.mark.parametrize(
    ("pattern", "simple"),
    [
        (r"^[a-z]+$", "[a-z]+"),
        (r"^\d{3}-\w\s$", r"[0-9]{3}\-[a-zA-Z0-9_][ ]"),
        (r"^(?:a|b)(?<year>[0-9]{4})$", "(a|b)([0-9]{4})"),
        (r"^[\w-.]+?$", r"[a-zA-Z0-9_\-\.]+"),
        (r"^\u0041\x42\/\.$", r"AB/\."),
        (r"^äö$", "äö"),
    ],
)
def test_a_simple_pattern_is_written_in_plain_terms(pattern: str, simple: str) -> None:
    found = read_pattern(pattern)
    assert (True, simple) == (found.portable, found.simple)


@pytest.mark.parametrize("pattern", [r"^[^,]+$", "^.*$", r"^[ -~]$", '^a"b$', r"^\\$", r"^\n$", r"^\D$", r"^\^$"])
def test_a_pattern_that_may_match_an_escaped_character_is_not_simple(pattern: str) -> None:
    found = read_pattern(pattern)
    assert (True, None) == (found.portable, found.simple)


@pytest.mark.parametrize(
    "pattern",
    [
        "abc", "^abc", "abc$", "^a|b$", r"^(?=a)a$", r"^(?!a)b$", r"^(?<=a)b$", r"^\bab\b$", r"^\p{L}$", r"^(a)\1$",
        r"^(?i)abc$", "^a(^b)$", "^a++$",
    ],
)  # fmt: skip
def test_syntax_that_engines_read_differently_is_not_portable(pattern: str) -> None:
    assert not read_pattern(pattern).portable


@pytest.mark.parametrize(
    "pattern", ["[", "[a", "(", ")", "a)", "*a", "a|*", "a{3,2}", "[z-a]", "\\", "(" * 50 + ")" * 50]
)
def test_an_invalid_expression_is_unreadable(pattern: str) -> None:
    with pytest.raises(Unreadable):
        read_pattern(pattern)


def test_a_pattern_has_a_length_limit() -> None:
    assert MOST_CHARS == read_pattern("a" * MOST_CHARS).size
    with pytest.raises(Unreadable):
        read_pattern("a" * (MOST_CHARS + 1))


@given(st.text(alphabet='ab09^$.*+?(){}[]|\\-,:=!<>dwsbp"', max_size=60))
def test_any_text_is_read_or_refused_quickly(pattern: str) -> None:
    """A simple form matches only text that a JSON string holds without escapes."""
    started = time.perf_counter()
    try:
        found = read_pattern(pattern)
    except Unreadable:
        return
    finally:
        assert 0.2 > time.perf_counter() - started
    if found.simple is not None:
        re.compile(found.simple)
        assert not set('"^$') & set(found.simple)
