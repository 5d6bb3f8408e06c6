"""Two processes under ``accelerate launch`` learn what one does, and the shipped FSDP configuration is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

import distill.training
from distill.dataset.files import write_lines
from distill.training.train import RESULT_FILE, train
from gateway.processes.child import free_port
from tests.distill.training.tiny import settings, tiny_examples

ROOT = Path(__file__).parents[3]
CONFIG = Path(distill.training.__file__).with_name("fsdp.yaml")


def test_two_processes_follow_the_trajectory_of_one(tiny: Path, tmp_path: Path) -> None:
    """Same steps, same losses, same gradient norms; the first process writes."""
    alone = train(tiny_examples(12), [], settings(tiny), tmp_path / "alone")
    write_lines(tmp_path / "examples.jsonl", tiny_examples(12))
    wanted = {"MODEL": tiny, "RANK": 4, "ALPHA": 8, "BATCH_EXAMPLES": 4, "EPOCHS": 2, "LEARNING_RATE": 0.01,
              "MICRO_BATCH_TOKENS": 100}  # fmt: skip
    environment = {f"DISTILL_TRAINING__{name}": str(value) for name, value in wanted.items()}
    # Where there is no GPU, accelerate's launcher of several GPUs starts processes that speak gloo.
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no",
              "--dynamo_backend", "no", "--main_process_port", str(free_port())]  # fmt: skip
    command = [*launch, "-m", "distill", "train", str(tmp_path / "examples.jsonl"), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    facts = json.loads((tmp_path / "two" / RESULT_FILE).read_text())
    assert alone.losses == pytest.approx(facts["losses"], rel=1e-4)
    assert alone.gradient_norms == pytest.approx(facts["gradient_norms"], rel=1e-3)
    assert alone.tokens == facts["tokens"]


def test_the_fsdp_configuration_is_one_that_accelerate_reads() -> None:
    """Every key is known to accelerate, and the plugin accepts the values."""
    config = load_config_from_file(str(CONFIG))
    assert ("FSDP", "bf16") == (str(config.distributed_type).rpartition(".")[2], config.mixed_precision)
    options = {
        name.removeprefix("fsdp_"): value for name, value in yaml.safe_load(CONFIG.read_text())["fsdp_config"].items()
    }
    options["auto_wrap_policy"] = options["auto_wrap_policy"].lower()
    options["cpu_offload"] = options.pop("offload_params")
    options["fsdp_version"] = options.pop("version")
    plugin = FullyShardedDataParallelPlugin(**options)
    assert 2 == plugin.fsdp_version
    assert not plugin.activation_checkpointing
