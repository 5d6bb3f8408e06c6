"""Run by the interpreter of TensorZero's own environment: a closed loop on its embedded gateway, best of N by a judge.

``python tensorzero_client.py BACKEND_URL N CONCURRENCY SECONDS`` prints the latencies in milliseconds and the time they
took together, as JSON. Client and gateway are one process, so that no HTTP lies between them. Observability is off:
nothing is stored. The judge is the same stub, which answers with any number; TensorZero then takes an answer by chance,
which costs no more time.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from tensorzero import AsyncTensorZeroGateway

WARM_UP_S = 1.0
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


async def measure(url: str, n: int, concurrency: int, seconds: float) -> dict[str, object]:
    """Latencies of the requests that began after the warm-up, and from then until the last one ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tensorzero.toml"
        file.write_text(CONFIGURATION.format(url=url, candidates=json.dumps(["one"] * n)))
        gateway = await AsyncTensorZeroGateway.build_embedded(config_file=str(file), clickhouse_url=None)
    question = "Describe a quiet harbour in the early morning, in a few sentences."
    asked = {"messages": [{"role": "user", "content": question}]}
    latencies_ms: list[float] = []
    begin = time.perf_counter() + WARM_UP_S
    end = begin + seconds

    async def caller() -> None:
        while (started := time.perf_counter()) < end:
            await gateway.inference(function_name="answer", variant_name="best", input=asked)
            if started >= begin:
                latencies_ms.append((time.perf_counter() - started) * 1e3)

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return {"ms": latencies_ms, "elapsed_s": time.perf_counter() - begin}


if __name__ == "__main__":
    _, backend, n_draws, callers, duration_s = sys.argv
    print(json.dumps(asyncio.run(measure(backend, int(n_draws), int(callers), float(duration_s)))))
