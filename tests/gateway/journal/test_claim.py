"""Folders of the spool have one owner each, and orphans find a new one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gateway.journal.claim import Claim

ROOT = Path(__file__).parents[3]


def folders(spool: Path) -> set[Path]:
    return {path for path in spool.iterdir() if path.is_dir()}


def test_a_living_owner_keeps_its_folder(tmp_path: Path) -> None:
    """Neither this process nor another takes it."""
    claim = Claim.new(tmp_path)
    assert [] == Claim.orphans(tmp_path)
    code = (
        "from pathlib import Path\nfrom gateway.journal.claim import Claim\n"
        f"exit(len(Claim.orphans(Path({str(tmp_path)!r}))))"
    )
    assert 0 == subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode
    claim.release()


def test_a_dead_owners_folder_goes_to_exactly_one(tmp_path: Path) -> None:
    """Its lock ended with its process; the first who looks has it."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom gateway.journal.claim import Claim\n"
        f"claim = Claim.new(Path({str(tmp_path)!r}))\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert -9 == subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode
    claims = Claim.orphans(tmp_path)
    assert folders(tmp_path) == {claim.folder for claim in claims}
    assert [] == Claim.orphans(tmp_path)
    claims[0].remove()
    assert set() == folders(tmp_path)


def test_a_released_folder_can_be_claimed_again(tmp_path: Path) -> None:
    """It is then an orphan like any other."""
    claim = Claim.new(tmp_path)
    claim.release()
    (orphan,) = Claim.orphans(tmp_path)
    assert claim.folder == orphan.folder
    orphan.release()
