"""A training from end to end: pinned losses, resumed after kills, and never repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.errors import TrainingError
from distill.training.callbacks import Step
from distill.training.checkpoints import sealed
from distill.training.train import RESULT_FILE, TENSORBOARD_DIR, Trained, train
from tests.distill.training.tiny import settings, tiny_examples

PINNED_LOSSES = (5.561354, 5.54636, 5.516592, 5.46949, 5.443704, 5.428133)
PINNED_NORMS = (0.129345, 0.129623, 0.193673, 0.274483, 0.181061, 0.146649)


class Killed(BaseException):
    """Simulates a process that ends between two steps."""


def killer(at: int) -> Any:
    def progress(step: Step) -> None:
        if step.done == at:
            raise Killed

    return progress


def weights(trained: Trained) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = load_file(trained.checkpoints[-1] / "adapter_model.safetensors")
    return loaded


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def unbroken(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Three steps an epoch, two epochs, on one thread."""
    return train(tiny_examples(12), [], settings(tiny), tmp_path_factory.mktemp("unbroken") / "out")


def test_the_loss_trajectory_is_pinned(unbroken: Trained) -> None:
    """Any change of the training's numbers changes these."""
    assert PINNED_LOSSES == pytest.approx(unbroken.losses, rel=1e-4)
    assert PINNED_NORMS == pytest.approx(unbroken.gradient_norms, rel=1e-3)


def test_a_training_writes_checkpoints_and_facts(unbroken: Trained, tiny: Path) -> None:
    """PEFT checkpoints evenly over the run, without a path of this machine, and the facts."""
    assert [2, 4, 6] == [int(folder.name.split("-")[1]) for folder in unbroken.checkpoints]
    for folder in unbroken.checkpoints:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert tiny.name == config["base_model_name_or_path"]
        assert {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"} == {
            name.rpartition(".")[2] for name in config["target_modules"]
        }
        assert not [*folder.glob("README*"), *folder.glob("optimizer*")]
    assert (6, 12, 0, {}) == (unbroken.steps, unbroken.examples, unbroken.replayed, unbroken.left_out)
    assert unbroken.tokens > 0
    assert unbroken.seconds > 0
    assert unbroken.peak_memory_bytes > 0
    assert "cpu" == unbroken.device
    assert unbroken.losses[-1] < unbroken.losses[0]


def test_loss_and_gradient_norm_are_on_tensorboard(unbroken: Trained) -> None:
    """One point a step."""
    events = EventAccumulator(str(unbroken.checkpoints[0].parent / TENSORBOARD_DIR))
    events.Reload()
    assert unbroken.losses == pytest.approx([point.value for point in events.Scalars("train/loss")])
    assert unbroken.gradient_norms == pytest.approx([point.value for point in events.Scalars("train/grad_norm")])


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_killed_training_continues_to_the_same_weights(
    unbroken: Trained, tiny: Path, tmp_path: Path, at: int
) -> None:
    """Before the first checkpoint, at an epoch's end, and in mid-epoch."""
    with pytest.raises(Killed):
        train(tiny_examples(12), [], settings(tiny), tmp_path, on_progress=killer(at))
    steps: list[int] = []
    resumed = train(tiny_examples(12), [], settings(tiny), tmp_path, on_progress=lambda step: steps.append(step.done))
    assert list(range((at - 1) // 2 * 2 + 1, 7)) == steps
    assert same(weights(unbroken), weights(resumed))
    assert unbroken.losses == resumed.losses
    assert unbroken.tokens == resumed.tokens


def test_an_incomplete_checkpoint_is_skipped(unbroken: Trained, tiny: Path, tmp_path: Path) -> None:
    """Only complete ones are read; the incomplete one is written again."""
    with pytest.raises(Killed):
        train(tiny_examples(12), [], settings(tiny), tmp_path, on_progress=killer(3))
    half = tmp_path / "checkpoint-3"
    half.mkdir()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    resumed = train(tiny_examples(12), [], settings(tiny), tmp_path)
    assert same(weights(unbroken), weights(resumed))
    assert not half.exists()


def test_temporary_checkpoints_are_written_between_the_kept_ones_and_removed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the newest of them stays, and none after the end."""
    monkeypatch.setattr("distill.training.train.RESUME_EVERY_S", 0.0)
    seen: list[list[int]] = []
    train(
        tiny_examples(12), [], settings(tiny, checkpoints=1), tmp_path,
        on_progress=lambda step: seen.append(list(sealed(tmp_path))),
    )  # fmt: skip
    assert [[], [1], [2], [3], [4], [5]] == seen
    assert [6] == list(sealed(tmp_path))


def test_a_finished_training_is_returned_as_it_was(unbroken: Trained, tiny: Path) -> None:
    """Idempotent: no step is taken."""
    steps: list[Step] = []
    again = train(tiny_examples(12), [], settings(tiny), unbroken.checkpoints[0].parent, on_progress=steps.append)
    assert unbroken == again
    assert [] == steps


def test_a_folder_of_another_training_is_refused_unless_it_starts_over(tiny: Path, tmp_path: Path) -> None:
    """Checkpoints of other data or settings must not be continued."""
    train(tiny_examples(4), [], settings(tiny, epochs=1), tmp_path)
    with pytest.raises(TrainingError, match="other data"):
        train(tiny_examples(5), [], settings(tiny, epochs=1), tmp_path)
    with pytest.raises(TrainingError, match="other settings"):
        train(tiny_examples(4), [], settings(tiny, epochs=1, rank=2), tmp_path)
    over = train(tiny_examples(5), [], settings(tiny, epochs=1, rank=2), tmp_path, resume=False)
    assert 5 == over.examples


def test_earlier_nights_examples_are_used_up_to_their_share(tiny: Path, tmp_path: Path) -> None:
    """Half of the set at most, by default."""
    earlier = tiny_examples(9, start=100)
    trained = train(tiny_examples(4), earlier, settings(tiny, epochs=1, checkpoints=1), tmp_path)
    assert (8, 4) == (trained.examples, trained.replayed)


@pytest.mark.parametrize("objective", ["dpo", "sft+ipo"])
def test_pairs_train_and_resume_too(tiny: Path, tmp_path: Path, objective: str) -> None:
    """To the same weights as unbroken."""
    options = settings(tiny, objective=objective, epochs=1, learning_rate=1e-3)
    whole = train(tiny_examples(12), [], options, tmp_path / "whole")
    with pytest.raises(Killed):
        train(tiny_examples(12), [], options, tmp_path / "broken", on_progress=killer(2))
    resumed = train(tiny_examples(12), [], options, tmp_path / "broken")
    assert same(weights(whole), weights(resumed))
    assert whole.losses[-1] < whole.losses[0]


def test_without_an_example_training_fails_with_the_reasons(tiny: Path, tmp_path: Path) -> None:
    """The error is one line."""
    with pytest.raises(TrainingError, match="no example to train on: 3 no_loser"):
        train(tiny_examples(3, losers=0), [], settings(tiny, objective="dpo"), tmp_path)


def test_training_off_the_main_thread_does_not_change_signal_handlers(tiny: Path, tmp_path: Path) -> None:
    """Only the main thread may set handlers."""
    before = signal.getsignal(signal.SIGTERM)
    found: list[Trained] = []
    worker = threading.Thread(
        target=lambda: found.append(train(tiny_examples(4), [], settings(tiny, epochs=1), tmp_path))
    )
    worker.start()
    worker.join()
    assert 1 == found[0].steps
    assert before == signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "at", "status", "left"), [(signal.SIGKILL, 3, -9, [2]), (signal.SIGTERM, 2, 143, [2, 3])]
)
def test_a_real_process_that_is_killed_or_stopped_resumes(
    unbroken: Trained, tiny: Path, tmp_path: Path, number: int, at: int, status: int, left: list[int]
) -> None:
    """The steps since the last checkpoint are lost to kill -9; SIGTERM saves one first and exits 143."""
    out = tmp_path / "out"
    program = f"""
import os, signal
from pathlib import Path
import torch
torch.set_num_threads({torch.get_num_threads()})
from distill.training.train import train
from tests.distill.training.tiny import settings, tiny_examples
def end(step):
    if step.done == {at}:
        os.kill(os.getpid(), {int(number)})
train(tiny_examples(12), [], settings(Path({str(tiny)!r})), Path({str(out)!r}), on_progress=end)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, env={**os.environ}, capture_output=True, text=True)
    assert status == done.returncode, done.stderr
    assert left == list(sealed(out))
    assert not (out / RESULT_FILE).exists()
    assert same(weights(unbroken), weights(train(tiny_examples(12), [], settings(tiny), out)))
