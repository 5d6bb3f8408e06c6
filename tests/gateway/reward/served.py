"""A running reward server, and helpers for its requests and answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn

from gateway.reward.local import LocalScorer
from gateway.reward.server_metrics import ServerMetrics


@dataclass
class Served:
    """A running reward server."""

    url: str
    http: httpx2.AsyncClient
    scorer: LocalScorer
    metrics: ServerMetrics
    uvicorn: uvicorn.Server

    async def classify(self, body: object = None, **fields: Any) -> httpx2.Response:
        """POST /classify; by default ask for raw rewards."""
        return await self.http.post("/classify", json=body or {"use_activation": False, **fields})

    async def rewards(self, **fields: Any) -> list[float | None]:
        """Return the rewards of a call that must succeed."""
        response = await self.classify(**fields)
        assert 200 == response.status_code, response.text
        return [item["probs"][0] for item in response.json()["data"]]


Start = Callable[..., Awaitable[Served]]


def turns(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def status_and_message(response: httpx2.Response) -> tuple[int, str]:
    """Return status and message of an error, which has its status twice."""
    error = response.json()["error"]
    assert response.status_code == error["code"]
    return response.status_code, error["message"]
