"""Measure the speed of rewards: ``python -m loadtests.reward``.

Two questions: how many answers per second the batcher scores at several loads, with the padding of its batches and the
wait of an answer for its batch; and how long the eight answers to one 1,000-token prompt take. On CUDA both are
measured in bfloat16 and in float32, on the CPU in float32.

Without ``--model`` the embedded model is measured (MiniLM: it reads 512 tokens, so the long prompt is clipped to that).
``--random-qwen3`` measures Qwen3-0.6B's shape with random weights, for machines without a model hub: speed does not
depend on the weights' values.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from gateway.embedded.weights import minilm_folder, reward_adapter_folder
from gateway.errors import RewardError
from gateway.reward.local import LocalScorer
from gateway.settings import RewardSettings
from gateway.types import BatchStats, Message
from loadtests.stack import machine
from loadtests.tables import rewards, titled

ANSWERS = 8
LONG_PROMPT_TOKENS = 1000
WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "thing",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "group",
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}[SEP]{% endfor %}"

Dtype = Literal["float32", "bfloat16"]


@dataclass
class Load:
    """One load, and the batcher's statistics under it."""

    races: int
    seconds: float = 0.0
    answers: int = 0
    race_ms: list[float] = field(default_factory=list)
    batches: list[BatchStats] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Return the throughput, padding and waits of this load."""
        waits = sorted(batch.wait_ms for batch in self.batches)
        padded = sum(batch.padded_tokens for batch in self.batches)
        return {
            "races": self.races,
            "pairs_per_s": self.answers / self.seconds,
            "pairs_per_batch": statistics.mean(batch.entries for batch in self.batches),
            "padding": 1 - sum(batch.tokens for batch in self.batches) / padded,
            "wait_p50_ms": statistics.median(waits),
            "wait_p95_ms": waits[int(len(waits) * 0.95)],
            "race_p50_ms": statistics.median(self.race_ms),
        }


def words(rng: random.Random, count: int) -> str:
    """Return about ``count`` tokens: common words are one token in any vocabulary."""
    return " ".join(rng.choices(WORDS, k=count))


async def load(settings: RewardSettings, races: int, seconds: float, spread_ms: float) -> Load:
    """Keep ``races`` running for ``seconds``; a race's answers finish within ``spread_ms`` of one another."""
    result = Load(races)
    rng = random.Random(races)

    async def answer(messages: Sequence[Message], text: str, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await scorer.score(messages, text)

    async def race() -> None:
        messages: list[Message] = [{"role": "user", "content": words(rng, rng.randint(10, 200))}]
        finish_s = [rng.uniform(0, spread_ms / 1000) for _ in range(ANSWERS)]
        started = time.perf_counter()
        texts = [words(rng, rng.randint(20, 250)) for _ in range(ANSWERS)]
        await asyncio.gather(*(answer(messages, text, s) for text, s in zip(texts, finish_s, strict=True)))
        result.race_ms.append((time.perf_counter() - started - max(finish_s)) * 1000)
        result.answers += ANSWERS

    async def client() -> None:
        while time.perf_counter() < deadline:
            await race()

    scorer = LocalScorer(settings, observe=lambda stats: result.batches.append(stats))
    await scorer.loaded()
    deadline = time.perf_counter() + 0.5
    await client()  # warm up
    result = Load(races)
    started = time.perf_counter()
    deadline = started + seconds
    await asyncio.gather(*(client() for _ in range(races)))
    result.seconds = time.perf_counter() - started
    await scorer.aclose()
    return result


async def long_prompt(settings: RewardSettings, repeats: int) -> tuple[float, bool]:
    """Return the median milliseconds of eight answers to a 1,000-token prompt, and whether the model clipped it."""
    rng = random.Random(0)
    scorer = LocalScorer(settings)
    await scorer.loaded()
    times_ms = []
    clipped = False
    for _ in range(repeats + 1):
        messages: list[Message] = [{"role": "user", "content": words(rng, LONG_PROMPT_TOKENS)}]
        texts = [words(rng, 150) for _ in range(ANSWERS)]
        started = time.perf_counter()
        scores = await asyncio.gather(*(scorer.score(messages, text) for text in texts))
        times_ms.append((time.perf_counter() - started) * 1000)
        clipped = clipped or any(score.prompt_truncated for score in scores)
    await scorer.aclose()
    return statistics.median(times_ms[1:]), clipped


def random_qwen3(folder: Path) -> None:
    """Write a model of Qwen3-0.6B's shape with random weights, and a tokenizer that is installed."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), model_max_length=4096)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForSequenceClassification(config).save_pretrained(folder)


def measure(settings: RewardSettings, options: argparse.Namespace) -> dict[str, object]:
    """Measure both questions for one model on one device in one type."""
    loads = [asyncio.run(load(settings, races, options.seconds, options.spread_ms)) for races in options.races]
    median_ms, clipped = asyncio.run(long_prompt(settings, options.repeats))
    return {
        "model": Path(settings.model).name,
        "device": settings.device,
        "dtype": settings.dtype,
        "loads": [one.figures() for one in loads],
        "long_prompt_ms": median_ms,
        "long_prompt_clipped": clipped,
    }


def run(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Measure the chosen model on every device there is, in every type that is used there."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        model, adapter = options.model, options.adapter
        if options.random_qwen3:
            random_qwen3(Path(folder))
            model = folder
        elif not model:
            model, adapter = str(minilm_folder()), reward_adapter_folder()
        for device in options.devices:
            if device.startswith("cuda") and not torch.cuda.is_available():
                print(f"{device}: not measured: there is no such device", file=sys.stderr)
                continue
            dtypes: list[Dtype] = ["bfloat16", "float32"] if device.startswith("cuda") else ["float32"]
            for dtype in dtypes:
                settings = RewardSettings(model=model, adapter=adapter, device=device, dtype=dtype)
                try:
                    yield measure(settings, options)
                except RewardError as error:
                    print(f"{device}, {dtype}: not measured: {error.message}", file=sys.stderr)


def options_from(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line's options, or ``words`` instead of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="folder or hub id; default: the embedded model")
    parser.add_argument("--adapter", type=Path, default=None)
    parser.add_argument("--random-qwen3", action="store_true", help="Qwen3-0.6B's shape with random weights")
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--races", nargs="+", type=int, default=[1, 4, 16], help="races at once")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each load")
    parser.add_argument("--spread-ms", type=float, default=50.0, help="a race's answers finish this far apart")
    parser.add_argument("--repeats", type=int, default=10, help="long prompts")
    return parser.parse_args(words)


def main() -> None:
    """Measure on the CPU, and on CUDA if there is one; print a table for each."""
    found = list(run(options_from()))
    print(titled({**machine(), "torch": version("torch")}, rewards(found)))


if __name__ == "__main__":
    main()
