"""Measure the speed of training the policy, and of plain TRL on the same data: ``python -m loadtests.training``.

Each contender runs in a process of its own, so that its peak memory is its own; one after the other, on the same
examples, base and LoRA. ``trl`` is ``SFTTrainer`` with its defaults: on a CPU it starts only with ``use_cpu``, casts to
bfloat16 and computes activations twice. ``trl-float32`` does neither, which is the best it does there by options
alone. On a machine with other work, tokens per CPU second are the fairer figure. Examples are random words, as long as
SmolLM2's answers: speed does not depend on their meaning.

Prints a table, or with ``--json`` the same as JSON with the machine, its load and the versions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

from distill.dataset.example import Example, ScoredAnswer
from distill.dataset.files import read_examples
from distill.dataset.split import conversation_key
from distill.settings import TrainingSettings

CONTENDERS = ("ratchet", "trl-float32", "trl")
MEDIAN_WORDS = 55
SPREAD = 0.6


def random_examples(count: int, seed: int) -> list[Example]:
    """Return examples with this project's prompts and answers of about 75 tokens, lognormal as real ones are."""
    rng = random.Random(seed)
    lines = resources.files("gateway.embedded").joinpath("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    words = " ".join(prompts).split()
    found = []
    for index in range(count):
        messages = [{"role": "user", "content": rng.choice(prompts)}]
        length = min(200, max(5, int(rng.lognormvariate(0, SPREAD) * MEDIAN_WORDS)))
        answer = ScoredAnswer(" ".join(rng.choices(words, k=length)), 1.0, length)
        found.append(Example(conversation_key(messages), f"made-{index}", index, messages, answer, (), 1.0, None))
    return found


def run_ratchet(examples: list[Example], settings: TrainingSettings, folder: Path) -> dict[str, Any]:
    """Run this project's training."""
    from distill.training.base import load_base
    from distill.training.train import train

    load_base(settings.model)  # imports and file cache warm
    started = time.process_time()
    load_base(settings.model)
    load_cpu_s = time.process_time() - started
    started = time.process_time()
    trained = train(examples, [], settings, folder)
    return {"cpu_seconds": time.process_time() - started - load_cpu_s,
            "steps": trained.steps, "tokens": trained.tokens, "seconds": trained.seconds,
            "peak_memory_bytes": trained.peak_memory_bytes, "last_loss": trained.losses[-1]}  # fmt: skip


def run_trl(examples: list[Example], settings: TrainingSettings, folder: Path, *, defaults: bool) -> dict[str, Any]:
    """Run TRL's own trainer, on its prompt and completion format."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from distill.training.base import load_base
    from distill.training.sft import lora
    from distill.training.train import peak_memory_bytes

    base = load_base(settings.model)
    rows = [
        {"prompt": example.messages, "completion": [{"role": "assistant", "content": example.winner.text}]}
        for example in examples
    ]
    options: dict[str, Any] = (
        {"use_cpu": not torch.cuda.is_available()} if defaults else {"bf16": False, "gradient_checkpointing": False}
    )
    arguments = SFTConfig(
        str(folder), num_train_epochs=settings.epochs, report_to=[], save_strategy="no", disable_tqdm=True, **options
    )
    started, started_cpu = time.monotonic(), time.process_time()
    trainer = SFTTrainer(
        base.model, arguments, train_dataset=Dataset.from_list(rows), processing_class=base.tokenizer,
        peft_config=lora(settings),
    )  # fmt: skip
    trainer.train()
    seconds, cpu_seconds = time.monotonic() - started, time.process_time() - started_cpu
    return {"cpu_seconds": cpu_seconds,
            "steps": trainer.state.global_step, "tokens": int(trainer._total_train_tokens), "seconds": seconds,
            "peak_memory_bytes": peak_memory_bytes(), "last_loss": None}  # fmt: skip


def contend(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run and measure one contender in this process."""
    import torch

    torch.set_num_threads(options.threads)
    examples = read_examples(options.examples) if options.examples else random_examples(options.count, options.seed)
    settings = TrainingSettings(model=options.model, epochs=options.epochs, max_length_tokens=1024)
    with tempfile.TemporaryDirectory() as folder:
        if name == "ratchet":
            measured = run_ratchet(examples, settings, Path(folder))
        else:
            measured = run_trl(examples, settings, Path(folder), defaults=name == "trl")
    return {"name": name, **measured, "tokens_per_s": measured["tokens"] / measured["seconds"],
            "tokens_per_cpu_s": measured["tokens"] / measured["cpu_seconds"]}  # fmt: skip


def in_own_process(name: str) -> dict[str, Any]:
    """Run one contender in a child, with this command's own options."""
    command = [sys.executable, "-m", "loadtests.training", *sys.argv[1:], "--contender", name]
    before = os.getloadavg()[0]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**row, "load_before": before, "load_after": os.getloadavg()[0]}


def machine() -> dict[str, Any]:
    """Return the machine and the versions of a measurement."""
    import torch

    from distill.training.train import versions

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "versions": versions(),
    }


def main() -> None:
    """Measure every contender, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=Path, help="examples file of a night; random words when not given")
    parser.add_argument("--count", type=int, default=64, help="examples of random words")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--model", default="", help="base model; the embedded SmolLM2 when not given")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=CONTENDERS, action="append", help="only these contenders")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(contend(options.contender, options)))
        return
    rows = [in_own_process(name) for name in options.only or CONTENDERS]
    if options.json:
        print(json.dumps({"machine": machine(), "threads": options.threads, "contenders": rows}, indent=2))
        return
    print(f"{'':<12} | {'tokens/s':>8} | {'a CPU second':>12} | {'seconds':>7} | {'peak MiB':>8} | load before, after")
    for row in rows:
        print(
            f"{row['name']:<12} | {row['tokens_per_s']:>8.0f} | {row['tokens_per_cpu_s']:>12.0f} | "
            f"{row['seconds']:>7.1f} | {row['peak_memory_bytes'] / 2**20:>8.0f} | "
            f"{row['load_before']:.1f}, {row['load_after']:.1f}"
        )


if __name__ == "__main__":
    main()
