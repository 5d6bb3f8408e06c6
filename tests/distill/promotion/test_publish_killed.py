"""Kill -9 during a publication: nothing that looks like an adapter is left, and the next attempt succeeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from distill.promotion.adapter import Adapter, adapters_in

# Each round is a process that kills itself at one renaming or change of mode: of the first file, the expected
# answers, the
# manifest, a mode, the folder; the last has none left. They are forks of one process: torch is imported once.
_KILLED_AGAIN_AND_AGAIN = """
import itertools, os, signal, sys
from datetime import datetime
from pathlib import Path
import torch
from distill.promotion import expected_answers
from distill.promotion.adapter import adapters_in
from distill.promotion.publish import publish
from tests.distill.promotion.weights import random_checkpoint
from tests.distill.training.tiny import tiny_base

folder = Path(sys.argv[1])
torch.set_num_threads(1)
model = tiny_base(folder.parent / "base")
checkpoint = random_checkpoint(folder.parent / "checkpoint", model, seed=1)
for round in (0, 2, 3, 6, 8, 9):
    if (child := os.fork()) == 0:
        left = itertools.count(round, -1)
        def die(event, arguments):
            if event in ("os.rename", "os.chmod") and str(folder) in str(arguments[0]) and next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(die)
        date = datetime(2026, 11, 22)
        publish(checkpoint, folder, model=str(model), run="night-1", n_allowed=4, n_base=8, created=date)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    drafts = [path.name for path in folder.glob(".unfinished-*/*")]
    print("round", ended, *drafts, *(path.name for path in adapters_in(folder)), flush=True)
"""


def test_a_publication_killed_anywhere_leaves_no_partial_adapter_and_can_be_repeated(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    command = [sys.executable, "-c", _KILLED_AGAIN_AND_AGAIN, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rounds = [line.split()[1:] for line in ended.stdout.splitlines() if line.startswith("round ")]
    assert 0 == ended.returncode, ended.stderr
    (published,) = adapters_in(folder)
    # Of a killed one there is a draft, which the next clears away, and no adapter.
    assert [["-9", published.name]] * 5 + [["0", published.name]] == rounds
    assert [published] == list(folder.iterdir())
    assert published.name == Adapter.open(published).name
