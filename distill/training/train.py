"""Train the policy from examples to checkpoints: always from the base, resumable at every step."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import structlog
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations import TensorBoardCallback

from distill.dataset.example import Example
from distill.dataset.files import content_hash
from distill.errors import TrainingError
from distill.exits import TERMINATED
from distill.settings import TrainingSettings
from distill.training.base import load_base
from distill.training.callbacks import RESUME_EVERY_S, Checkpoints, Progress, Reporter, StopOnSignal
from distill.training.checkpoints import discard, kept_steps, read_seal, sealed
from distill.training.encode import Encoded, encode_pairs, encode_winners
from distill.training.objectives import ipo_beta, with_replay
from distill.training.sft import trainer_for
from gateway.files import write_atomically
from gateway.reward.weights import quiet_transformers

PLAN_FILE = "training.json"
RESULT_FILE = "trained.json"
TENSORBOARD_DIR = "tensorboard"
ONLY_TO_RESUME = ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state*.pth")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of a finished training.

    ``checkpoints`` are PEFT adapter folders, ascending by step. ``tokens`` are those read, prompts included, over all
    epochs; ``seconds`` are those after loading the base, over all resumed processes, without lost steps. ``losses`` and
    ``gradient_norms`` hold one value a step.
    """

    checkpoints: tuple[Path, ...]
    steps: int
    examples: int
    replayed: int
    left_out: dict[str, int]
    tokens: int
    seconds: float
    peak_memory_bytes: int
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    base: str
    device: str
    versions: dict[str, str]


def train(
    examples: Sequence[Example],
    replay: Sequence[Example],
    settings: TrainingSettings,
    out: Path,
    *,
    resume: bool = True,
    on_progress: Progress = lambda step: None,
) -> Trained:
    """Train the base on winners and write checkpoints to ``out``.

    A second call returns a finished training as it was; an interrupted one continues from its last complete checkpoint
    to the same weights. On SIGTERM a checkpoint is written and the process exits with status 143. Under ``accelerate
    launch`` every process calls this, and the first one writes.

    Args:
        examples: Tonight's winners.
        replay: Earlier nights' winners, up to ``settings.replay_share`` of all.
        settings: The hyperparameters.
        out: A folder for this training alone.
        resume: False discards the contents of ``out`` and starts from the base.
        on_progress: Called after every optimizer step.

    Raises:
        TrainingError: There are no examples, the base does not load, ``out`` holds a training with other data or
            settings, there is no memory even for one example, or the loss is not finite.
    """
    chosen = with_replay(examples, replay, settings.replay_share, settings.seed)
    finished = _prepare(out, {"settings": settings.model_dump(), "data": content_hash(chosen)}, resume)
    if finished is not None:
        return finished
    base = load_base(settings.model)
    pairwise = settings.objective != "sft"
    encoded = (encode_pairs if pairwise else encode_winners)(base.tokenizer, chosen, settings.max_length_tokens)
    if not encoded.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in encoded.left_out.items()) or "none was given"
        raise TrainingError(f"no example to train on: {reasons}")
    beta = ipo_beta(chosen) if settings.objective == "sft+ipo" else 0.0
    callbacks = [Checkpoints(out, settings.checkpoints, RESUME_EVERY_S), stop := StopOnSignal(), Reporter(on_progress)]
    started = monotonic()
    with quiet_transformers(), stop:
        trainer = trainer_for(
            base, Dataset.from_list(encoded.rows), settings, output_dir=str(out), beta=beta, callbacks=callbacks
        )
        if trainer.accelerator.is_main_process:
            trainer.add_callback(TensorBoardCallback(SummaryWriter(str(out / TENSORBOARD_DIR))))
        last = next(reversed(sealed(out).values()), None)
        trainer.started_s = started - (read_seal(last).seconds if last else 0.0)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    PartialState().wait_for_everyone()
    if stop.stopped:
        raise SystemExit(TERMINATED)
    return _finish(
        trainer, base.name, encoded, len(chosen) - len(examples), out, settings, monotonic() - trainer.started_s
    )


def _prepare(out: Path, plan: dict[str, Any], resume: bool) -> Trained | None:
    """Return the finished training in ``out``; None after preparing the folder for an unfinished or a new one."""
    fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()
    first = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    out.mkdir(parents=True, exist_ok=True)
    plan_file, result_file = out / PLAN_FILE, out / RESULT_FILE
    if not resume and first:
        for file in (result_file, plan_file):
            file.unlink(missing_ok=True)
        discard(out, set())
    PartialState().wait_for_everyone()
    if plan_file.exists():
        before = json.loads(plan_file.read_text(encoding="utf-8"))
        if before["fingerprint"] != fingerprint:
            changed = [name for name in plan if before.get(name) != json.loads(json.dumps(plan[name], default=str))]
            raise TrainingError(
                f"{out} holds a training with other {' and '.join(changed)}: choose another folder, or start again"
            )
        if result_file.exists():
            return _read(result_file, out)
    PartialState().wait_for_everyone()
    if first:
        write_atomically(plan_file, json.dumps({**plan, "fingerprint": fingerprint}, default=str, indent=2).encode())
    return None


def _finish(
    trainer: Any, base: str, encoded: Encoded, replayed: int, out: Path, settings: TrainingSettings, seconds: float
) -> Trained:
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    whole = sealed(out)
    trained = Trained(
        checkpoints=tuple(whole[step] for step in kept_steps(trainer.state.max_steps, settings.checkpoints)),
        steps=trainer.state.global_step,
        examples=len(encoded.rows),
        replayed=replayed,
        left_out=dict(encoded.left_out),
        tokens=int(trainer.state.num_input_tokens_seen),
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(),
        losses=tuple(entry["loss"] for entry in history),
        gradient_norms=tuple(entry["grad_norm"] for entry in history),
        base=base,
        device=str(trainer.accelerator.device),
        versions=versions(),
    )
    if trainer.accelerator.is_main_process:
        facts = asdict(trained) | {"checkpoints": [folder.name for folder in trained.checkpoints]}
        write_atomically(out / RESULT_FILE, json.dumps(facts, indent=2).encode())
        for folder in trained.checkpoints:
            for pattern in ONLY_TO_RESUME:
                for file in folder.glob(pattern):
                    file.unlink(missing_ok=True)
    _log.info(
        "training_finished", steps=trained.steps, examples=trained.examples, tokens=trained.tokens,
        tokens_per_s=round(trained.tokens / seconds), device=trained.device,
    )  # fmt: skip
    return trained


def _read(file: Path, out: Path) -> Trained:
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["checkpoints"] = tuple(out / name for name in facts["checkpoints"])
    return Trained(**facts | {name: tuple(facts[name]) for name in ("losses", "gradient_norms")})


def peak_memory_bytes() -> int:
    """Return the peak memory of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions() -> dict[str, str]:
    packages = ("torch", "transformers", "trl", "peft", "accelerate")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}
