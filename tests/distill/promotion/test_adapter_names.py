"""A name from a policy document becomes a path only if it has the form of an adapter's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import PromotionError
from distill.evaluation.sample_store import sample_file
from distill.promotion.adapter import adapter_named

GOOD = "rft-2026-11-22-0123abcd"
BAD = [
    "../adapters/" + GOOD,
    "/etc",
    "",
    ".",
    "..",
    GOOD + "/..",
    GOOD + "\n",
    "rft-2026-11-22-..",
    "x" * 10_000,
    "a\0b",
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_a_path_is_refused_before_a_file_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromotionError, match="not an adapter's name"):
        adapter_named(name, tmp_path)


def test_a_valid_name_is_opened_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(PromotionError, match="is not an adapter: its manifest"):
        adapter_named(GOOD, tmp_path)


@pytest.mark.parametrize("name", [*BAD, "org/model:lora"])
def test_samples_of_each_adapter_have_their_own_file_in_the_folder(tmp_path: Path, name: str) -> None:
    def file_of(adapter: str) -> Path:
        return sample_file(tmp_path, base="base", served_by="vllm", adapter=adapter, max_tokens=128)

    file = file_of(name)
    assert tmp_path == file.parent
    file.write_text("")
    assert file != file_of(name + "x")
    assert f"{GOOD}-" in file_of(GOOD).name
