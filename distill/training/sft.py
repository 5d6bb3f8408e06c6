"""TRL's trainers with one optimizer step a batch, split by length into micro-batches that fit into memory.

The data loader gives all examples of a step at once, so the split changes neither a step's examples nor, apart from
rounding, its result. Micro-batches are halved when memory runs out. Resuming needs no accumulation state.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from time import monotonic
from typing import Any, Literal

import structlog
import torch
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from peft import LoraConfig
from transformers import PrinterCallback, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from distill.errors import TrainingError
from distill.settings import TrainingSettings
from distill.training.base import Base
from distill.training.checkpoints import seal
from distill.training.encode import IGNORED
from distill.training.head import score_answers_only

CPU_MICRO_BATCH_TOKENS = 1024
CUDA_MICRO_BATCH_TOKENS = 16_384
BETA_DPO = 0.1
REFERENCE_BATCH = 4

Inputs = dict[str, torch.Tensor]

_log = structlog.get_logger()


class _Stepwise(Trainer):  # type: ignore[misc]
    """The common part of both trainers: micro-batches, out-of-memory, non-finite numbers, sealed checkpoints."""

    micro_batch_tokens: int
    rows_per_example: int
    base_name: str
    started_s: float

    def training_step(self, model: Any, inputs: Inputs, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run forward and backward over the whole batch of a step.

        Raises:
            TrainingError: There is no memory even for one example, or the loss is not finite.
        """
        while True:
            micro_batches = self._same_count(split(inputs, self.micro_batch_tokens, self.rows_per_example))
            try:
                loss = self._accumulate(model, inputs, micro_batches, num_items_in_batch)
                break
            except (RuntimeError, MemoryError) as error:
                self._make_room(error, micro_batches)
            # Outside "except": the exception keeps the failed pass's tensors alive.
            model.zero_grad()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        if not math.isfinite(float(loss)):
            raise TrainingError(f"the loss is {float(loss)} at step {self.state.global_step + 1}")
        return loss

    def _accumulate(self, model: Any, inputs: Inputs, parts: list[list[int]], num_items: Any) -> torch.Tensor:
        losses = []
        for part in parts:
            last = part is parts[-1]
            share = len(part) / sum(map(len, parts))
            with nullcontext() if last else self.accelerator.no_sync(model):
                micro = rows(inputs, part, self.rows_per_example)
                if self._flattens():
                    micro = flattened(micro)
                self.micro_share = share
                losses.append(super().training_step(model, micro, num_items))
        return torch.stack(losses).sum()

    def _make_room(self, error: Exception, parts: list[list[int]]) -> None:
        """Halve the micro-batch, or raise why that does not help."""
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)):
            raise error
        if self.accelerator.num_processes > 1:
            raise TrainingError(
                f"out of memory on one of several devices: set DISTILL_TRAINING__MICRO_BATCH_TOKENS "
                f"below {self.micro_batch_tokens} and run again"
            ) from error
        if max(map(len, parts)) == 1:
            raise TrainingError(f"no memory even for one example, at step {self.state.global_step + 1}") from error
        self.micro_batch_tokens //= 2
        _log.warning(
            "training_out_of_memory", step=self.state.global_step + 1, micro_batch_tokens=self.micro_batch_tokens
        )

    def _same_count(self, parts: list[list[int]]) -> list[list[int]]:
        """Split into the same number of parts on every device, because a pass may be a collective operation."""
        if self.accelerator.num_processes == 1:
            return parts
        count = int(self.accelerator.gather(torch.tensor([len(parts)], device=self.accelerator.device)).max())
        order = [place for part in parts for place in part]
        return [[order[place] for place in share.tolist()] for share in torch.arange(len(order)).tensor_split(count)]

    def _flattens(self) -> bool:
        """Return True if flash attention separates the examples of one long row, so that nothing is padded."""
        attention = str(self.model.config._attn_implementation)
        return self.rows_per_example == 1 and attention.startswith("flash")

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            raise TrainingError(f"the gradient's norm is {float(norm)} at step {self.state.global_step + 1}")
        return norm

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Write no card: the night's report replaces it."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            seal(self.args.output_dir, self.state, self.base_name, monotonic() - self.started_s)
        self.accelerator.wait_for_everyone()


class WinnersTrainer(_Stepwise, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer over the winners."""

    rows_per_example = 1

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        score_answers_only(self.model.get_base_model())


class PairsTrainer(_Stepwise, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer over winners and the answers they beat."""

    rows_per_example = 2
    micro_share = 1.0

    def _prepare_dataset(self, dataset: Any, *how: Any) -> Any:
        return dataset  # TRL's would tokenize what is tokenized

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        score_answers_only(self.model.get_base_model())
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_loss(
        self, model: Any, inputs: Inputs, return_outputs: Literal[False] = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weight TRL's loss, a mean over the pairs of a micro-batch, by its share of the step's pairs."""
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch) * self.micro_share


def lora(settings: TrainingSettings) -> LoraConfig:
    return LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )


def trainer_for(
    base: Base, rows: Any, settings: TrainingSettings, *, output_dir: str, beta: float, callbacks: list[Any]
) -> Any:
    """Build the trainer of the objective.

    Args:
        base: Model and tokenizer; the adapter is added to the model.
        rows: A ``datasets.Dataset`` in the columns of ``encode``.
        settings: The hyperparameters.
        output_dir: Folder of the checkpoints.
        beta: IPO's.
        callbacks: The Trainer's.
    """
    common = _arguments(settings, output_dir, PartialState().num_processes)
    options = {
        "model": base.model, "train_dataset": rows, "processing_class": base.tokenizer, "callbacks": callbacks,
        "peft_config": lora(settings),
    }  # fmt: skip
    if settings.objective == "sft":
        trainer: Any = WinnersTrainer(args=SFTConfig(**common, shuffle_dataset=False), **options)
    else:
        both = settings.objective == "sft+ipo"
        losses = {"loss_type": ["sft", "ipo"], "beta": beta} if both else {"loss_type": ["sigmoid"], "beta": BETA_DPO}
        # The base's log-probabilities never change, so they are computed once.
        reference = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": REFERENCE_BATCH}
        trainer = PairsTrainer(args=DPOConfig(**common, **losses, **reference), **options)
    trainer.remove_callback(PrinterCallback)
    trainer.base_name = base.name
    on_cpu = trainer.accelerator.device.type == "cpu"
    trainer.micro_batch_tokens = settings.micro_batch_tokens or (
        CPU_MICRO_BATCH_TOKENS if on_cpu else CUDA_MICRO_BATCH_TOKENS
    )
    return trainer


def split(inputs: Inputs, budget_tokens: int, rows_per_example: int = 1) -> list[list[int]]:
    """Group a batch's examples by length so that padded tokens fit the budget; a single example may exceed it."""
    lengths = inputs["attention_mask"].sum(dim=1)
    examples = len(lengths) // rows_per_example
    longest = lengths.view(rows_per_example, examples).amax(dim=0).tolist()
    groups: list[list[int]] = []
    for place in sorted(range(examples), key=lambda place: -longest[place]):
        # Longest first: a group's first member sets its width, and a batch that cannot fit fails at once.
        width = longest[groups[-1][0]] if groups else 0
        if groups and width * (len(groups[-1]) + 1) * rows_per_example <= budget_tokens:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def rows(inputs: Inputs, examples: list[int], rows_per_example: int = 1) -> Inputs:
    """Return the examples' rows of a batch, cut to the longest of them."""
    batch = len(inputs["attention_mask"])
    offsets = range(0, batch, batch // rows_per_example)
    picked = torch.tensor([offset + place for offset in offsets for place in examples])
    width = int(inputs["attention_mask"][picked].sum(dim=1).max())
    return {
        name: value[picked, :width] if value.dim() == 2 else value[torch.tensor(examples)]
        for name, value in inputs.items()
    }


def flattened(inputs: Inputs) -> dict[str, Any]:
    """Join the rows into one, each with its own positions, which flash attention reads as separate sequences."""
    real = inputs["attention_mask"].bool()
    lengths = real.sum(dim=1)
    labels = inputs["labels"].clone()
    labels[:, 0] = IGNORED  # a row's first token is not predicted from the row before it
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {
        "input_ids": inputs["input_ids"][real][None],
        "labels": labels[real][None],
        "position_ids": torch.cat([torch.arange(int(length)) for length in lengths]).to(lengths.device)[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _arguments(settings: TrainingSettings, output_dir: str, world: int) -> dict[str, Any]:
    """Return the arguments that both of TRL's configurations share."""
    if settings.batch_examples % world:
        raise TrainingError(f"batch_examples {settings.batch_examples} is not a multiple of {world} devices")
    cuda = torch.cuda.is_available()
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": settings.batch_examples // world,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warm_up,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": cuda,
        "use_cpu": not cuda,
        # Recomputing activations costs a third of the speed; micro-batches leave memory for them.
        "gradient_checkpointing": False,
        "max_length": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": True,
    }
