"""huggingface_hub's ``AsyncInferenceClient`` over our own HTTP: it writes the request, and we send and read it.

By itself it would

- send the user's ``HF_TOKEN`` to the backend and obey ``HF_HUB_OFFLINE=1``: both are meant for the model hub;
- send through httpx2, at four times the CPU (``gateway.backend.http``);
- parse answers into dataclasses that copy themselves at every level (35 ms of CPU for 128 tokens with logprobs);
- keep an entry on the client's exit stack for each streamed call until it is closed: so each has its own client here.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from huggingface_hub import AsyncInferenceClient

from gateway.backend.http import Http, StatusError
from gateway.types import JsonObject

_UNUSED_TOKEN = "unused"  # noqa: S105 - never sent; without one the hub's client looks for the user's token on disk
_BOM = codecs.BOM_UTF8  # some proxies put one before JSON


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole response: its JSON, of any shape, and its headers."""

    body: Any
    headers: Mapping[str, str]


class HubClient(AsyncInferenceClient):
    """The hub's client for one server, over a shared ``Http`` that it does not close.

    What ``chat_completion`` returns has one field, ``body``, which the hub's parser does not look into.
    """

    def __init__(self, http: Http, url: str, *, timeout_s: float) -> None:
        super().__init__(base_url=url, timeout=timeout_s, token=_UNUSED_TOKEN)
        self._http = http
        self._url = url
        self._timeout_s = timeout_s

    async def completion(self, arguments: JsonObject) -> Completion:
        answer: Any = await self.chat_completion(**arguments)
        completion: Completion = answer["body"]
        return completion

    async def chunks(self, arguments: JsonObject, stream_options: Mapping[str, bool]) -> AsyncGenerator[Any, None]:
        """Yield the chunks of a streamed completion as decoded JSON of any shape.

        Closing the generator closes the connection.
        """
        hub = HubClient(self._http, self._url, timeout_s=self._timeout_s)
        async with hub.exit_stack:
            chunks: Any = await hub.chat_completion(**arguments, stream=True, stream_options=stream_options)  # type: ignore[call-overload]
            async for chunk in chunks:
                yield orjson.loads(chunk["body"])

    def held(self) -> int:
        """Return the entries on the exit stack: 0, or ended calls have left something behind."""
        return len(self.exit_stack._exit_callbacks)  # type: ignore[attr-defined]  # contextlib has no public way

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        url, body = request_parameters.url, request_parameters.json
        if stream:
            lines = self._http.stream(url, body, timeout_s=self._timeout_s)
            return _opaque(await self.exit_stack.enter_async_context(lines))
        response = await self._http.call(url, body, timeout_s=self._timeout_s)
        if response.status >= 400:
            raise StatusError(response.status, response.content)
        return {"body": Completion(orjson.loads(response.content.removeprefix(_BOM)), response.headers)}


async def _opaque(lines: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Wrap each event of a stream into one string, which the hub's parser passes on unread."""
    async for raw in lines:
        line = raw.removeprefix("\ufeff")  # a byte order mark may begin a stream
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if data and line.startswith("data:"):
            yield f"data: {orjson.dumps({'body': data}).decode()}"
