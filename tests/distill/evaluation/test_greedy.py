"""Greedy answers: the call that asks for them, and the log-probabilities that come back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from distill.errors import EvaluationError
from distill.evaluation.greedy import answer_greedily
from gateway.backend.pool import BackendPool
from gateway.types import Message, Prompt, Sampling

ASKED: list[Message] = [{"role": "user", "content": "Name a tree."}]


class FakePool:
    """Gives one answer, and keeps the calls."""

    def __init__(self, text: str | None, logprobs: Any) -> None:
        self.calls: list[tuple[Prompt, dict[str, Any]]] = []
        self._answer = SimpleNamespace(text=text, logprobs=logprobs)

    async def complete(self, prompt: Prompt, **options: Any) -> SimpleNamespace:
        self.calls.append((prompt, options))
        return self._answer


def entry(token: str, logprob: Any, *others: tuple[str, float]) -> dict[str, Any]:
    return {
        "token": token,
        "logprob": logprob,
        "top_logprobs": [{"token": other, "logprob": each} for other, each in others],
    }


async def answered(text: str | None, logprobs: Any) -> list[tuple[str, Any]]:
    return await answer_greedily(cast(BackendPool, FakePool(text, logprobs)), ASKED, None, max_tokens=7)


@pytest.mark.parametrize("adapter", [None, "rft-1"])
async def test_the_first_replica_is_asked_for_the_likeliest_tokens(adapter: str | None) -> None:
    pool = FakePool("", None)
    await answer_greedily(cast(BackendPool, pool), ASKED, adapter, max_tokens=7)
    sampling = Sampling(temperature=0.0, max_tokens=7, logprobs=True, top_logprobs=5)
    assert [(Prompt(ASKED, sampling, adapter), {"seed": 1, "replica": 0})] == pool.calls


async def test_each_token_has_the_log_probabilities_at_its_place() -> None:
    content = [entry("Oak", -0.5, ("Oak", -0.5), ("Ash", -1.5)), entry(".", -0.25)]
    assert [("Oak", {"Oak": -0.5, "Ash": -1.5}), (".", {".": -0.25})] == await answered("Oak.", {"content": content})


@pytest.mark.parametrize("others", [(("\ufffd", -2.0), ("\ufffd", -3.0)), (("\ufffd", -3.0), ("\ufffd", -2.0))])
async def test_of_two_tokens_with_one_text_the_likelier_counts(others: tuple[tuple[str, float], ...]) -> None:
    content = [entry("Oak", -0.5, *others)]
    assert [("Oak", {"Oak": -0.5, "\ufffd": -2.0})] == await answered("Oak", {"content": content})


@pytest.mark.parametrize("text", ["", None])
@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}])
async def test_an_empty_answer_has_no_tokens(text: str | None, logprobs: Any) -> None:
    assert [] == await answered(text, logprobs)


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (None, "the answer came without log-probabilities"),
        ({"content": []}, "the answer came without log-probabilities"),
        ({"content": [entry("Oak", "likely")]}, "the answer came with log-probabilities that are not numbers"),
        ({"content": [entry("Oak", None)]}, "the answer came with log-probabilities that are not numbers"),
    ],
)
async def test_an_answer_without_numbers_is_refused(logprobs: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=f"^{message}$"):
        await answered("Oak", logprobs)
