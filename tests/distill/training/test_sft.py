"""The trainers: splits do not change the result, out-of-memory is handled, and the loss is TRL's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from distill.errors import TrainingError
from distill.settings import TrainingSettings
from distill.training.base import load_base
from distill.training.encode import encode_pairs, encode_winners
from distill.training.sft import _arguments, flattened, lora, rows, split, trainer_for
from tests.distill.training.tiny import settings, tiny_examples

CUDA_OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_OOM = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")


def trainer(options: TrainingSettings, folder: Path, *, beta: float = 0.1, count: int = 8) -> Any:
    base = load_base(options.model)
    encode = encode_winners if options.objective == "sft" else encode_pairs
    encoded = encode(base.tokenizer, tiny_examples(count), options.max_length_tokens)
    return trainer_for(base, Dataset.from_list(encoded.rows), options, output_dir=str(folder), beta=beta, callbacks=[])


def one_step(own: Any, budget_tokens: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of all examples as one step."""
    own.micro_batch_tokens = budget_tokens
    batch = own.data_collator([own.train_dataset[place] for place in range(len(own.train_dataset))])
    own.model.zero_grad()
    own.current_gradient_accumulation_steps = 1
    items = batch["labels"][:, 1:].ne(-100).sum() if "labels" in batch else None
    loss = own.training_step(own.model, batch, items)
    gradients = [weight.grad.flatten() for weight in own.model.parameters() if weight.grad is not None]
    return float(loss), torch.cat(gradients)


def shaken(own: Any) -> Any:
    """The trainer with a non-zero adapter: a new one adds nothing, which hides mistakes."""
    torch.manual_seed(1)
    for weight in own.model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return own


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_step_does_not_depend_on_how_it_is_split(tiny: Path, tmp_path: Path, objective: str) -> None:
    """One pass for all, or one for each example: same loss, same gradient."""
    own = shaken(trainer(settings(tiny, objective=objective), tmp_path))
    whole_loss, whole_gradient = one_step(own, 100_000)
    for budget_tokens in (1, 200):
        loss, gradient = one_step(own, budget_tokens)
        assert whole_loss == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(whole_gradient, gradient, atol=1e-5, rtol=1e-4)


def test_the_loss_of_sft_is_plain_trls(tiny: Path, tmp_path: Path) -> None:
    """Same rows, same adapter: the same number, and the same gradient."""
    options = settings(tiny)
    own = shaken(trainer(options, tmp_path / "own"))
    base = load_base(str(tiny))
    arguments = SFTConfig(
        str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, report_to=[], max_length=None
    )
    plain: Any = shaken(
        SFTTrainer(
            base.model, arguments, train_dataset=own.train_dataset, processing_class=base.tokenizer,
            peft_config=lora(options),
        )
    )  # fmt: skip
    assert_same_step(own, plain)


def test_trl_makes_the_same_rows_of_prompt_and_completion(tiny: Path, tmp_path: Path) -> None:
    """Except for the newline after the end of the turn, before which the backend stops."""
    base, examples = load_base(str(tiny)), tiny_examples(3)
    given = [
        {"prompt": each.messages, "completion": [{"role": "assistant", "content": each.winner.text}]}
        for each in examples
    ]
    arguments = SFTConfig(str(tmp_path), bf16=False, report_to=[])
    plain: Any = SFTTrainer(
        base.model, arguments, train_dataset=Dataset.from_list(given), processing_class=base.tokenizer
    )
    ours = encode_winners(base.tokenizer, examples, 512).rows
    assert [row["input_ids"] for row in ours] == [row["input_ids"][:-1] for row in plain.train_dataset]
    assert [row["labels"] for row in ours] == [row["labels"][:-1] for row in plain.train_dataset]


@pytest.mark.parametrize(("objective", "losses"), [("dpo", ["sigmoid"]), ("sft+ipo", ["sft", "ipo"])])
def test_the_loss_of_pairs_is_plain_trls(tiny: Path, tmp_path: Path, objective: str, losses: list[str]) -> None:
    """The reference computed beforehand or in the step, our head or TRL's: the same number."""
    options = settings(tiny, objective=objective)
    own = shaken(trainer(options, tmp_path / "own"))
    base = load_base(str(tiny))
    arguments = DPOConfig(
        str(tmp_path / "trl"), bf16=False, gradient_checkpointing=False, report_to=[], loss_type=losses, beta=0.1
    )
    base_rows = Dataset.from_list(
        [
            {"prompt": each.messages, "chosen": [_said(each.winner.text)], "rejected": [_said(each.losers[0].text)]}
            for each in tiny_examples(8)
        ]
    )
    plain: Any = shaken(
        DPOTrainer(
            base.model, args=arguments, train_dataset=base_rows, processing_class=base.tokenizer,
            peft_config=lora(options),
        )
    )  # fmt: skip
    # TRL's own rows, but for the newline after the end of the turn, at which the backend has stopped.
    plain.train_dataset = Dataset.from_list(
        [
            {
                "prompt_ids": row["prompt_ids"],
                "chosen_ids": row["chosen_ids"][:-1],
                "rejected_ids": row["rejected_ids"][:-1],
            }
            for row in plain.train_dataset
        ]
    )
    assert_same_step(own, plain)


def test_a_flattened_batch_has_the_loss_of_the_padded_one(tiny: Path, tmp_path: Path) -> None:
    """Joined rows, separated by their positions, as flash attention reads them."""
    own = shaken(trainer(settings(tiny), tmp_path))
    padded = one_step(own, 100_000)
    own._flattens = lambda: True
    flat = one_step(own, 100_000)
    assert padded[0] == pytest.approx(flat[0], rel=1e-5)
    torch.testing.assert_close(padded[1], flat[1], atol=1e-5, rtol=1e-4)
    batch = own.data_collator([own.train_dataset[0], own.train_dataset[4]])
    assert int(batch["attention_mask"].sum()) == flattened(batch)["input_ids"].shape[1]


@pytest.mark.parametrize("error", [CUDA_OOM, CPU_OOM, MemoryError()], ids=["cuda", "cpu", "python"])
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(
    tiny: Path, tmp_path: Path, error: Exception
) -> None:
    """The step is repeated in smaller parts, from a zero gradient."""
    own = shaken(trainer(settings(tiny), tmp_path))
    expected_loss, expected_gradient = one_step(own, 100_000)
    _with_memory_for(own, 2, error)
    loss, gradient = one_step(own, 1000)
    assert expected_loss == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(expected_gradient, gradient, atol=1e-5, rtol=1e-4)
    assert own.micro_batch_tokens < 1000


def test_no_memory_for_a_single_example_ends_the_training_with_an_error(tiny: Path, tmp_path: Path) -> None:
    """Halving further cannot help."""
    own = trainer(settings(tiny), tmp_path)
    _with_memory_for(own, 0, CPU_OOM)
    with pytest.raises(TrainingError, match="no memory even for one example, at step 1"):
        one_step(own, 1000)


def test_out_of_memory_on_one_of_several_devices_names_the_setting(tiny: Path, tmp_path: Path) -> None:
    """The others wait in a collective call: one device alone cannot halve its micro-batch."""
    own = trainer(settings(tiny), tmp_path)
    own.accelerator = type("Several", (), {"num_processes": 2})()
    with pytest.raises(TrainingError, match="MICRO_BATCH_TOKENS"):
        own._make_room(CUDA_OOM, [[0, 1]])


def test_other_errors_are_not_handled_as_out_of_memory(tiny: Path, tmp_path: Path) -> None:
    """A bug must be visible."""
    own = trainer(settings(tiny), tmp_path)
    _with_memory_for(own, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        one_step(own, 1000)


def test_a_non_finite_loss_names_its_step(tiny: Path, tmp_path: Path) -> None:
    """Before it changes the weights."""
    own = trainer(settings(tiny), tmp_path)
    for weight in own.model.parameters():
        weight.data.fill_(float("nan"))
    own.state.global_step = 6
    with pytest.raises(TrainingError, match="loss is nan at step 7"):
        one_step(own, 1000)


def test_a_non_finite_gradient_names_its_step(tiny: Path, tmp_path: Path) -> None:
    """The loss may still be finite."""
    own = trainer(settings(tiny), tmp_path)
    own.create_optimizer()
    one_step(own, 1000)
    next(weight for weight in own.model.parameters() if weight.grad is not None).grad.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"gradient's norm is .* at step 1"):
        own._clip_grad_norm(own.model)


def test_examples_of_similar_length_share_a_micro_batch_within_the_budget() -> None:
    """Longest first; an example that exceeds the budget is a group of its own."""
    lengths = [3, 10, 4, 9, 30]
    mask = torch.zeros(5, 30, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    batch = {"attention_mask": mask, "input_ids": torch.arange(150).view(5, 30)}
    assert [[4], [1, 3], [2, 0]] == split(batch, 20)
    cut = rows(batch, [2, 0])
    assert (2, 4) == tuple(cut["input_ids"].shape)
    assert torch.equal(batch["input_ids"][[2, 0], :4], cut["input_ids"])


def test_the_batch_must_divide_among_the_devices(tiny: Path) -> None:
    """Otherwise a step would not have the number of examples of the setting."""
    with pytest.raises(TrainingError, match="batch_examples 4 is not a multiple of 3 devices"):
        _arguments(settings(tiny), "out", 3)


def assert_same_step(own: Any, plain: Any) -> None:
    """The same batch gives both the same loss and the same gradient."""
    loss, gradient = one_step(own, 100_000)
    batch = plain.data_collator([plain.train_dataset[place] for place in range(len(plain.train_dataset))])
    plain.model.zero_grad()
    expected = plain.compute_loss(plain.model, batch)
    expected.backward()
    assert float(expected.detach()) == pytest.approx(loss, rel=1e-5)
    wanted = torch.cat([weight.grad.flatten() for weight in plain.model.parameters() if weight.grad is not None])
    torch.testing.assert_close(wanted, gradient, atol=1e-5, rtol=1e-4)


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _with_memory_for(own: Any, most_rows: int, error: Exception) -> None:
    """A model that runs out of memory on more rows."""
    model = own.model.get_base_model()
    forward: Callable[..., Any] = model.forward

    def scarce(*args: Any, **kwargs: Any) -> Any:
        if len(kwargs["input_ids"]) > most_rows:
            raise error
        return forward(*args, **kwargs)

    model.forward = scarce
