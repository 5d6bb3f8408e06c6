"""A stub of vLLM's adapters at run time: it lists them, takes and drops them, and refuses what vLLM refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class VllmStub:
    """``async with VllmStub() as stub``: vLLM's /health, /v1/models and /v1/{load,unload}_lora_adapter."""

    url: str = ""
    healthy: bool = True
    sees_folders: bool = True
    updatable: bool = True
    adapters: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)

    async def __aenter__(self) -> VllmStub:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        if self.updatable:
            app.router.add_post("/v1/load_lora_adapter", self._load)
            app.router.add_post("/v1/unload_lora_adapter", self._unload)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, _: web.Request) -> web.Response:
        models = [{"id": "base"}, *({"id": name, "parent": "base"} for name in self.adapters)]
        return web.json_response({"data": models})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(("load", body))
        if body["lora_name"] in self.adapters:
            return web.json_response({"message": "has already been loaded"}, status=400)
        if not self.sees_folders:
            message = f"Loading lora {body['lora_name']} failed: No adapter found for {body['lora_path']}"
            return web.json_response({"error": {"message": message, "type": "NotFoundError", "code": 404}}, status=404)
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(("unload", body))
        if self.adapters.pop(body["lora_name"], None) is None:
            error = {"message": f"The lora adapter '{body['lora_name']}' cannot be found.", "type": "NotFoundError"}
            return web.json_response({"error": error}, status=404)
        return web.Response(text="Success")
