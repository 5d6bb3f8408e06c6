"""Files of examples, and the hash of a set."""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, replace
from pathlib import Path

import orjson
import pytest

from distill.dataset.example import Example, HeldOutPrompt, ScoredAnswer
from distill.dataset.files import content_hash, read_examples, read_held_out, write_lines
from distill.errors import DataError
from tests.distill.dataset.records import user
from tests.distill.training.tiny import tiny_examples


def made(n: int) -> Example:
    losers = (ScoredAnswer("worst\u2028line", -1.5, 2), ScoredAnswer("bad", 0.25, 3))
    return Example(
        f"key{n}", f"chatcmpl-{n}", n, user(f"frage {n} ü"), ScoredAnswer("good\n", 1.5, 4), losers, 1.25, None
    )


EXAMPLES = [made(n) for n in range(5)]
PROMPTS = [HeldOutPrompt(f"key{n}", user(f"question {n}")) for n in range(3)]


def test_an_example_without_a_reward_model_has_the_hash_of_earlier_releases() -> None:
    """A training continues after an upgrade: it is identified by the hash of its examples."""
    (found,) = tiny_examples(1)
    old = {name: value for name, value in asdict(found).items() if name != "reward_model"}
    digest = hashlib.sha256(orjson.dumps(old)).digest()
    assert hashlib.sha256(digest).hexdigest() == content_hash([found])
    assert content_hash([found]) != content_hash([replace(found, reward_model="judge")])


def test_files_are_read_as_written(tmp_path: Path) -> None:
    write_lines(tmp_path / "new" / "examples.jsonl", EXAMPLES)
    write_lines(tmp_path / "held_out.jsonl", PROMPTS)
    assert EXAMPLES == read_examples(tmp_path / "new" / "examples.jsonl")
    assert PROMPTS == read_held_out(tmp_path / "held_out.jsonl")


def test_an_empty_set_is_an_empty_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "examples.jsonl", [])
    assert [] == read_examples(tmp_path / "examples.jsonl")


def test_a_bad_line_is_named_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    write_lines(path, EXAMPLES)
    path.write_bytes(path.read_bytes() + b'{"key": "secret"}\n')
    with pytest.raises(DataError, match=f"{path}, line 6: ") as raised:
        read_examples(path)
    assert "secret" not in str(raised.value)


def test_a_missing_file_and_a_folder_in_the_way_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_examples(tmp_path / "none")
    with pytest.raises(DataError, match="cannot be written: Is a directory"):
        write_lines(tmp_path, EXAMPLES)


def test_the_hash_depends_on_the_set_and_not_on_its_order() -> None:
    shuffled = random.Random(0).sample(EXAMPLES, len(EXAMPLES))
    assert content_hash(EXAMPLES, PROMPTS) == content_hash(shuffled, PROMPTS[::-1])
    different = [content_hash(EXAMPLES), content_hash(EXAMPLES[1:]), content_hash([]), content_hash([], PROMPTS)]
    assert len(different) == len(set(different))
