"""Callbacks of a training: write and discard checkpoints, stop on SIGTERM, report progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import structlog
import torch
from accelerate import PartialState
from torch import distributed
from transformers import TrainerCallback

from distill.training.checkpoints import discard, kept_steps, sealed

RESUME_EVERY_S = 300.0
"""Time between temporary checkpoints, the most that a killed run loses."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Step:
    """Progress of a run after an optimizer step."""

    done: int
    total: int
    loss: float
    gradient_norm: float
    tokens: int


Progress = Callable[[Step], None]


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Saves kept checkpoints evenly over the run and temporary ones in between, of which only the newest stays.

    Args:
        folder: The Trainer's folder of checkpoints.
        count: The number of kept checkpoints.
        every_s: Seconds between temporary checkpoints.
    """

    def __init__(self, folder: Path, count: int, every_s: float) -> None:
        self._folder = folder
        self._count = count
        self._every_s = every_s
        self._saved_at = monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        due = any_device(monotonic() - self._saved_at >= self._every_s)
        if due or state.global_step in kept_steps(state.max_steps, self._count):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Discard the temporary checkpoints before this one."""
        self._saved_at = monotonic()
        if PartialState().is_main_process:
            discard(self._folder, {*kept_steps(state.max_steps, self._count), *list(sealed(self._folder))[-1:]})


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """On SIGTERM, finishes the step, saves a checkpoint, stops the run and sets ``stopped``."""

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> StopOnSignal:
        # Only the main thread may set handlers; elsewhere the process's own handler stands.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Save and stop, on all devices at the same step."""
        if any_device(self._asked) and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True
            _log.info("training_stops", step=state.global_step, steps=state.max_steps)


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Reports every step, on the first device only."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **parts: Any) -> None:
        # The summary at the end has no loss.
        if PartialState().is_main_process and "loss" in logs:
            tokens = int(state.num_input_tokens_seen)
            self._progress(Step(state.global_step, state.max_steps, logs["loss"], logs.get("grad_norm", 0.0), tokens))


def any_device(flag: bool) -> bool:
    """Return True on all devices if the flag is set on any: all of them must start a collective operation together."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return flag
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    vote = torch.tensor([int(flag)], device=device)
    distributed.all_reduce(vote, op=distributed.ReduceOp.MAX)
    return bool(vote.item())
