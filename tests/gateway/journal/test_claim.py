"""Each folder of the spool has one owner, and orphans get a new one."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.journal.claim import Claim

ROOT = Path(__file__).parents[3]


def folders(spool: Path) -> set[Path]:
    return {path for path in spool.iterdir() if path.is_dir()}


def run_in_process(spool: Path, statement: str) -> int:
    """Run a statement in another process, with ``spool`` set; return its exit status."""
    code = f"import os, pathlib\nfrom gateway.journal.claim import Claim\nspool = pathlib.Path({str(spool)!r})\n"
    return subprocess.run([sys.executable, "-c", code + statement], cwd=ROOT, check=False).returncode


def test_a_living_owner_keeps_its_folder(tmp_path: Path) -> None:
    """Neither this process nor another one claims it."""
    claim = Claim.new(tmp_path)
    assert [] == Claim.orphans(tmp_path)
    assert 0 == run_in_process(tmp_path, "exit(len(Claim.orphans(spool)))")
    claim.release()


def test_a_killed_owners_folder_is_claimed_once(tmp_path: Path) -> None:
    """SIGKILL frees its lock; the first process to look claims the folder."""
    assert -9 == run_in_process(tmp_path, "claim = Claim.new(spool)\nos.kill(os.getpid(), 9)")
    claims = Claim.orphans(tmp_path)
    assert folders(tmp_path) == {claim.folder for claim in claims}
    assert 0 == run_in_process(tmp_path, "exit(len(Claim.orphans(spool)))")
    claims[0].remove()
    assert set() == folders(tmp_path)


def test_a_released_folder_can_be_claimed_again(tmp_path: Path) -> None:
    """One thread claims and another releases, as in the gateway."""
    with ThreadPoolExecutor(max_workers=1) as other_thread:
        claim = other_thread.submit(Claim.new, tmp_path).result()
        claim.release()
        (orphan,) = other_thread.submit(Claim.orphans, tmp_path).result()
    assert claim.folder == orphan.folder
    orphan.release()


def test_a_worker_of_an_earlier_release_keeps_its_folder(tmp_path: Path) -> None:
    """Earlier releases held a plain flock on the same file."""
    claim = Claim.new(tmp_path)
    claim.release()
    with (claim.folder / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert [] == Claim.orphans(tmp_path)
    (orphan,) = Claim.orphans(tmp_path)
    orphan.remove()
