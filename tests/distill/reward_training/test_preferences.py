"""Reading pairs, and splitting them so that no prompt is on both sides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DataError
from distill.reward_training.preferences import Preference, folds, human_groups, read_answers, read_preferences


def row(prompt: str = "Why is the sky blue?", **changes: Any) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": "Air scatters blue light most."}],
        "rejected": [{"role": "assistant", "content": "It just is."}],
        "source": "ours",
        "license": "Apache-2.0",
        **changes,
    }


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def said(text: str) -> tuple[tuple[str, str], ...]:
    return (("user", text),)


def test_a_pair_is_read_with_its_source_and_licence(tmp_path: Path) -> None:
    pair = read_preferences(written(tmp_path / "p.jsonl", row(), ""))[0]
    assert pair == Preference(
        said("Why is the sky blue?"), "Air scatters blue light most.", "It just is.", "ours", "Apache-2.0"
    )
    assert pair.longer_is_better


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{broken", "line 2: not JSON"),
        ("[1, 2]", "line 2: row: Input should be"),
        ('{"prompt": []}', "line 2: prompt: List should have at least 1 item"),
        (json.dumps(row(chosen=[{"role": "assistant", "content": "  "}])), r"line 2: chosen\.0\.content"),
        (json.dumps(row(chosen=[])), "line 2: chosen: List should have at least 1 item"),
        (json.dumps({k: v for k, v in row().items() if k != "rejected"}), "line 2: rejected: Field required"),
        (json.dumps(row(rejected=row()["chosen"])), "line 2: chosen and rejected are the same text"),
    ],
)
def test_a_bad_row_is_named_by_its_line_and_never_quoted(tmp_path: Path, bad: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_preferences(written(tmp_path / "p.jsonl", row(), bad))
    assert "scatters" not in str(caught.value)


def test_a_file_that_is_missing_empty_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read"):
        read_preferences(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="no preference pairs"):
        read_preferences(written(tmp_path / "empty.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_preferences(tmp_path / "binary.jsonl")


def test_answers_are_read_with_their_prompts(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", {"prompt": [{"role": "user", "content": "Hi"}], "text": "Hello."})
    assert read_answers(file) == [(said("Hi"), "Hello.")]
    with pytest.raises(DataError, match="line 1: text"):
        read_answers(written(tmp_path / "b.jsonl", {"prompt": [{"role": "user", "content": "Hi"}]}))


PROMPTS = st.lists(st.text(alphabet="abc XYZ.", min_size=1, max_size=40), min_size=1, max_size=30)


@given(PROMPTS, st.integers(2, 6))
def test_every_prompt_has_one_fold_and_order_does_not_matter(texts: list[str], n_folds: int) -> None:
    prompts = [said(text) for text in texts]
    split = folds(prompts, n_folds)
    assert set(split) == set(prompts)
    assert all(0 <= fold < n_folds for fold in split.values())
    assert split == folds(list(reversed(prompts)) + prompts, n_folds)


@given(st.integers(0, 500))
def test_near_copies_of_a_prompt_share_its_fold(number: int) -> None:
    text = f"Please write a short story number {number} about a lighthouse keeper and the sea"
    copies = [text, text.upper(), f"{text}!", f"{text}, and make it sad.", f"Hello. {text}"]
    assert len(set(folds([said(copy) for copy in copies], 7).values())) == 1


def test_unlike_prompts_fall_into_different_folds() -> None:
    split = folds([said(f"{word} {word}ing {word}ed") for word in ("walk", "jump", "play", "talk", "look")], 2)
    assert set(split.values()) == {0, 1}


def test_length_carries_no_weight_within_a_source() -> None:
    """Three pairs prefer the longer answer and one the shorter; both sides have the same weight."""
    longer = [Preference(said(f"q{i}"), "a long answer", "short", "s", "l") for i in range(3)]
    shorter = [Preference(said("q9"), "short", "a long answer", "s", "l")]
    weights = [comparison.weight for group in human_groups(longer + shorter) for comparison in group.comparisons]
    assert sum(weights[:3]) == pytest.approx(weights[3])


def test_answers_to_one_prompt_form_one_group_with_each_text_once() -> None:
    pairs = [Preference(said("q"), "a", "b", "s", "l"), Preference(said("q"), "b", "c", "s", "l")]
    (group,) = human_groups(pairs)
    assert group.texts == ["a", "b", "c"]
    assert [(c.better, c.worse, c.kind) for c in group.comparisons] == [(0, 1, "s"), (1, 2, "s")]
    assert group.messages == [{"role": "user", "content": "q"}]
