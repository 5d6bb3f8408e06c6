"""The routes of one server besides chat completions: its health, its identity and limits, its adapters."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.backend.discovery import host_of
from gateway.backend.failures import from_status, json_object
from gateway.backend.flavours import Catalogue, Flavour
from gateway.backend.http import Http, Response
from gateway.backend.identify import Identity, identify
from gateway.errors import BackendProtocolError, BackendUnreachable, GatewayError
from gateway.types import JsonObject


class Server:
    """Asks one server, whose URL may end in ``/v1``; a call without a response raises ``GatewayError``."""

    def __init__(self, http: Http, url: str, *, timeout_s: float) -> None:
        self.url = url
        self.root_url = url.removesuffix("/v1")
        self.name = host_of(url)
        self._http = http
        self._timeout_s = timeout_s

    async def call(self, path: str, body: JsonObject | None = None, *, timeout_s: float | None = None) -> Response:
        """GET a path, or POST to it where there is a body."""
        return await self._http.call(self.root_url + path, body, timeout_s=timeout_s or self._timeout_s)

    async def post(self, path: str, body: JsonObject) -> JsonObject:
        """Return the JSON object that answers a body; an empty one if none does."""
        response = await self.call(path, body)
        return json_object(response.content) if response.status == 200 else {}

    async def find_problem(self, flavour: Flavour) -> str | None:
        """Return why the server is not well, by its health check and its answer to our API key; None when it is."""
        status = (await self.call(flavour.health_path)).status
        if status != 200:
            return f"its health check answers with status {status}"
        # The health check needs no API key; this route does.
        guarded = await self.call(flavour.guarded_path, flavour.guarded_body)
        return "it refuses the gateway's API key" if guarded.status in (401, 403) else None

    async def identify(self) -> Identity | None:
        """Return what the server is; None where it does not say."""
        return await identify(self._json)

    async def list_models(self, flavour: Flavour) -> Catalogue:
        """Return the models and adapters that the server lists; raise ``BackendError`` if that is no list."""
        assert flavour.catalogue_path is not None
        response = await self.call(flavour.catalogue_path)
        if response.status != 200:
            raise from_status(response.status, json_object(response.content), flavour)
        try:
            return flavour.read_catalogue(orjson.loads(response.content))
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise BackendProtocolError("the backend's list of models could not be read") from error

    async def read_capacity(self, flavour: Flavour) -> int | None:
        """Return how many draws the server takes at once; None if it does not say."""
        assert flavour.capacity_path is not None
        try:
            response = await self.call(flavour.capacity_path)
        except BackendUnreachable:
            raise
        except GatewayError:
            return None
        return flavour.read_capacity(json_object(response.content)) if response.status == 200 else None

    async def shows_tools(self, flavour: Flavour) -> bool:
        """Return whether the server's chat template puts tools into the prompt; True where it does not say."""
        assert flavour.properties_path is not None
        response = await self.call(flavour.properties_path)
        return response.status != 200 or flavour.shows_tools(json_object(response.content))

    async def _json(self, path: str) -> Any:
        """Return the JSON at a path; None where there is none."""
        try:
            response = await self.call(path)
            return orjson.loads(response.content) if response.status == 200 else None
        except (GatewayError, ValueError):
            return None
