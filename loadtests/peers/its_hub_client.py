"""Run by the interpreter of its_hub's own environment: its best of N, with the stub as the judge too.

The judge's answers are not JSON, so each score is the fallback, after a search for JSON in the answer. Structured
output is off and calls in flight are unbounded: both are documented options, and the faster ones.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from its_hub import BestOfN, LLMJudge, OpenAICompatibleLanguageModel
from its_hub.core.orchestrator import LMOrchestrator

from loadtests.closed_loop import QUESTION, Call
from loadtests.peers.library import main


@asynccontextmanager
async def library(backend: str, n: int) -> AsyncIterator[Call]:
    """Open its algorithm over its own client."""
    logging.disable(logging.CRITICAL)  # a warning for each of the judge's answers
    async with OpenAICompatibleLanguageModel(f"{backend}/v1", "unused", "tgi", max_completion_tokens=64) as model:
        judge = LLMJudge(model, response_format=None)
        best_of_n = BestOfN(judge, LMOrchestrator(max_concurrency=-1))

        async def call() -> None:
            await best_of_n.ainfer(model, QUESTION, budget=n)

        yield call


if __name__ == "__main__":
    main(library)
