"""Files are replaced as a whole, durable where asked, and leave no drafts."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from gateway import files
from gateway.files import atomic_replace, drop_drafts, write_atomically


def test_a_file_is_replaced_as_a_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    write_atomically(path, [b"t", b"wo"])
    assert b"two" == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


def test_a_written_file_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    """Others read it: node_exporter the metrics, people the report."""
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "whole", b"")
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "whole").stat().st_mode


@pytest.mark.parametrize("durable", [True, False])
def test_a_durable_replacement_syncs_the_draft_before_and_the_folder_after(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    replace = os.replace

    def record_replace(draft: Path, path: Path) -> None:
        calls.append("replace")
        replace(draft, path)

    monkeypatch.setattr(files, "sync_file", lambda path: calls.append("sync the draft"))
    monkeypatch.setattr(files, "sync_folder", lambda path: calls.append(f"sync {path.name}"))
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_replace(tmp_path / "file", durable=durable) as draft:
        draft.write_bytes(b"new")
    expected = ["sync the draft", "replace", f"sync {tmp_path.name}"] if durable else ["replace"]
    assert expected == calls


def test_a_refused_write_keeps_the_old_file_and_names_it(tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk: the kernel refuses the write in the same way."""
    path = tmp_path / "file"
    write_atomically(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="file") as raised:
            write_atomically(path, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) == raised.value.filename
    assert b"old" == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_only_drafts_are_dropped(tmp_path: Path) -> None:
    kept = {tmp_path / "deeper" / name for name in ("file", ".hidden", ".file.0123456789abcde")}
    left = tmp_path / "deeper" / ".file.0123456789abcdef"
    left.parent.mkdir()
    for path in (*kept, left):
        path.touch()
    drop_drafts(tmp_path)
    assert kept == set(left.parent.iterdir())
