from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.backend.stopping import StopTrimmer
from gateway.types import JsonObject

LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=4)


def trimmed(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    trimmer = StopTrimmer(stops)
    shown = "".join(trimmer.feed(piece)[0] for piece in pieces) + trimmer.finish()[0]
    return shown, trimmer.stopped


def test_the_text_ends_before_the_first_stop_string() -> None:
    assert ("one ", True) == trimmed(["one END two END"], ["END"])


def test_of_two_stop_strings_complete_at_once_the_longer_is_cut() -> None:
    assert ("a", True) == trimmed(["abcd"], ["c", "bc"])


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert ("ab", True) == trimmed(["abcd"], ["bcd", "c"])


def test_nothing_follows_a_stop_string() -> None:
    assert ("a", True) == trimmed(["a", "END", "b"], ["END"])


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    trimmer = StopTrimmer(["\n\nHuman:"])
    shown = [trimmer.feed(piece)[0] for piece in ("so", "\n", "\nHu", "manity")]
    assert ["so", "", "", "\n\nHumanity"] == shown
    assert ("", []) == trimmer.finish()


def test_text_held_back_comes_at_the_end() -> None:
    assert ("so EN", False) == trimmed(["so EN"], ["END"])


def test_an_empty_stop_string_stops_nothing() -> None:
    assert ("text", False) == trimmed(["text"], [""])


@given(LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=6))
def test_pieces_and_whole_text_show_the_same(text: str, stops: list[str], cuts: list[int]) -> None:
    """However the text is divided, the same part of it is shown."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert trimmed(list(text), stops) == trimmed([text], stops) == trimmed(pieces, stops)


@given(LETTERS, STOPS)
def test_no_stop_string_is_ever_shown(text: str, stops: list[str]) -> None:
    shown, stopped = trimmed([text], stops)
    assert not any(stop in shown for stop in stops)
    assert any(stop in text for stop in stops) == stopped
    assert text.startswith(shown)


def entries(*tokens: str) -> list[JsonObject]:
    return [{"token": token} for token in tokens]


def test_logprobs_are_shown_with_the_tokens_they_belong_to() -> None:
    trimmer = StopTrimmer(["END"])
    assert ("a ", entries("a ")) == trimmer.feed("a E", entries("a ", "E"))
    assert ("", []) == trimmer.feed("N", entries("N"))
    assert ("ENx", entries("E", "N", "x")) == trimmer.feed("x", entries("x"))


def test_logprobs_of_a_stop_string_are_not_shown() -> None:
    trimmer = StopTrimmer(["END"])
    assert ("a ", entries("a ")) == trimmer.feed("a END", entries("a ", "END", "</s>"))
    assert ("", []) == trimmer.finish()
