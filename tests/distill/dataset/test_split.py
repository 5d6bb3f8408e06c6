"""The split: permanent, by a hash of the conversation's first user message."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distill.dataset.split import conversation_key, first_user_text, is_held_out
from tests.distill.dataset.records import user

TEXTS = st.text(max_size=30)


def test_the_key_of_a_prompt_is_pinned() -> None:
    """Another hash would move held-out prompts into training, in every archive."""
    key = conversation_key(user("Why is the sky blue?"))
    assert "c30456ddea464574da711a52a03dd850" == key
    shares = [share / 100 for share in range(101)]
    assert 18 == next(index for index, share in enumerate(shares) if is_held_out(key, share))


@given(TEXTS, st.lists(st.sampled_from([" ", "\n", "\t"]), max_size=3).map("".join))
def test_case_and_spacing_do_not_change_the_key(text: str, space: str) -> None:
    assert conversation_key(user(text)) == conversation_key(user(space + text + space))
    assert conversation_key(user("Straße  ÉTÉ")) == conversation_key(user("strasse E\u0301te\u0301".casefold()))


@given(TEXTS, TEXTS, TEXTS)
def test_continuations_of_a_prompt_share_its_key(system: str, prompt: str, later: str) -> None:
    grown = [
        {"role": "system", "content": system},
        *user(prompt),
        {"role": "assistant", "content": later},
        *user(later),
    ]
    assert conversation_key(user(prompt)) == conversation_key(grown)


@given(TEXTS, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_all_that_a_smaller_one_does(text: str, one: float, other: float) -> None:
    key = conversation_key(user(text))
    small, large = sorted((one, other))
    assert is_held_out(key, large) or not is_held_out(key, small)
    assert is_held_out(key, 1.0)
    assert not is_held_out(key, 0.0)


def test_about_the_share_is_held_out() -> None:
    held_out = sum(is_held_out(conversation_key(user(f"question {n}")), 0.2) for n in range(5000))
    assert 900 < held_out < 1100


def test_text_parts_are_joined_and_anything_else_is_no_text() -> None:
    parts = [{"type": "text", "text": "look"}, {"type": "image_url"}, "x", {"type": "text", "text": "here"}]
    assert "look\n\nhere" == first_user_text([{"role": "user", "content": parts}])
    assert "" == first_user_text([{"role": "user", "content": None}])
    assert "" == first_user_text([{"role": "assistant", "content": "hello"}])
