"""One gateway shared by a module whose tests try to break it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest_asyncio
from redis.asyncio import Redis

from gateway.journal.record import decode
from gateway.settings import Settings
from tests.redis_server import RedisServer
from tests.serving import MESSAGES, Served, running
from tests.stubs.knobs import Knobs
from tests.stubs.reward import RewardKnobs, RewardStub
from tests.stubs.tgi import TgiStub

PERMITS = 6
JSON = {"content-type": "application/json"}


@dataclass(slots=True)
class Shared:
    """A gateway shared by many tests: each misuses it, and then checks that nothing was lost."""

    served: Served
    redis: Redis
    last_entry: bytes = b"0"

    async def post(
        self, content: bytes, headers: dict[str, Any] | None = None, path: str = "/v1/chat/completions"
    ) -> httpx2.Response:
        """POST the bytes as they are."""
        return await self.served.http.post(path, content=content, headers={**JSON, **(headers or {})})

    async def chat(self, **fields: Any) -> httpx2.Response:
        """A chat with best_of 1, unless ``fields`` has another."""
        return await self.served.chat(**{"best_of": 1, **fields})

    async def assert_unharmed(self, *also_recorded: str) -> None:
        """Assert that a good request gets all permits, and that the journal has only good requests' records."""
        response = await self.served.chat(best_of=PERMITS)
        body = response.json()
        assert response.status_code == 200, body
        assert (body["best_of_n"]["n"], body["best_of_n"]["selection"]) == (PERMITS, "scored")
        assert [*also_recorded, body["id"]] == await self.records_until(body["id"])

    async def until_all_permits(self) -> list[str]:
        """Send requests until the server's limit, halved by refusals, allows all permits again; return their ids."""
        ids: list[str] = []
        n = 0
        while n < PERMITS:
            assert len(ids) < PERMITS * PERMITS, f"the limit stays at {n}"
            body = (await self.served.chat(best_of=PERMITS)).json()
            ids.append(body["id"])
            n = body["best_of_n"]["n"]
        return ids

    async def records_until(self, last: str) -> list[str]:
        """Return the ids of the records since the last call, up to ``last``."""
        ids: list[str] = []
        while last not in ids:
            found: Any = await self.redis.xread({"ratchet:journal": self.last_entry}, block=10_000)
            assert found, f"no record of {last} came"
            for _, entries in found:
                self.last_entry = entries[-1][0]
                ids += [decode(fields[b"data"]).id for _, fields in entries]
        return ids

    def restore(self) -> None:
        """Reset the stubs to their defaults."""
        for stub, knobs in ((self.served.tgi, Knobs()), (self.served.rewards, RewardKnobs())):
            stub.knobs.update({name: getattr(knobs, name) for name in type(knobs).__dataclass_fields__})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_gateway() -> AsyncIterator[Shared]:
    """Started once for a module."""
    folder = Path(tempfile.mkdtemp(prefix="api-"))  # short, because it holds a unix socket
    server = RedisServer(folder)
    server.start()
    try:
        async with TgiStub() as tgi, RewardStub() as rewards, Redis.from_url(server.url) as redis:
            settings = Settings.model_validate(
                {
                    "redis": {"url": server.url},
                    "backend": {"urls": (tgi.url,)},
                    "reward": {"url": rewards.url},
                    "journal": {"spool_dir": folder / "spool"},
                    "policy": {"exploration": 0.0},
                    "race": {"max_in_flight": PERMITS, "queue_timeout_s": 0.5},
                }
            )
            async with (
                running(settings) as url,
                httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as http,
            ):
                yield Shared(Served(url, http, tgi, rewards, settings), redis)
    finally:
        server.kill()
        shutil.rmtree(folder)


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(module_gateway: Shared) -> AsyncIterator[Shared]:
    """The module's gateway, with healthy stubs and without unread records in its journal."""
    module_gateway.restore()
    first = (await module_gateway.chat()).json()["id"]
    await module_gateway.records_until(first)
    yield module_gateway
    module_gateway.restore()


def chat_body(**fields: Any) -> dict[str, Any]:
    """A good request with best_of 1, changed by ``fields``."""
    return {"model": "ratchet", "messages": MESSAGES, "best_of": 1, **fields}
