"""Run by the interpreter of TensorZero's own environment: best of N by a judge, by its embedded gateway.

Observability is off: nothing is stored. The judge is the same stub, which answers with any number; TensorZero then
takes an answer by chance, which costs no more time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tensorzero import AsyncTensorZeroGateway

from loadtests.closed_loop import QUESTION, Call
from loadtests.peers.library import main

CONFIGURATION = """
[gateway]
observability.enabled = false

[models.stub]
routing = ["stub"]

[models.stub.providers.stub]
type = "openai"
model_name = "tgi"
api_base = "{url}/v1/"
api_key_location = "none"

[functions.answer]
type = "chat"

[functions.answer.variants.one]
type = "chat_completion"
model = "stub"
max_tokens = 64

[functions.answer.variants.best]
type = "experimental_best_of_n_sampling"
candidates = {candidates}

[functions.answer.variants.best.evaluator]
model = "stub"
json_mode = "tool"
"""


@asynccontextmanager
async def gateway(backend: str, n: int) -> AsyncIterator[Call]:
    """Open its embedded gateway, configured for best of ``n``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tensorzero.toml"
        file.write_text(CONFIGURATION.format(url=backend, candidates=json.dumps(["one"] * n)))
        embedded = await AsyncTensorZeroGateway.build_embedded(config_file=str(file), clickhouse_url=None)
    request = {"messages": [{"role": "user", "content": QUESTION}]}

    async def call() -> None:
        await embedded.inference(function_name="answer", variant_name="best", input=request)

    yield call


if __name__ == "__main__":
    main(gateway)
