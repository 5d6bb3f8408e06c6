"""huggingface_hub's ``AsyncInferenceClient``, made fit for a hot path.

Four things stand in its way there, and each is mended here and only here:

- it would send the user's ``HF_TOKEN`` to the backend, and ``HF_HUB_OFFLINE=1`` would keep it from localhost: both are
  meant for the model hub;
- httpx2's client merges, redirects, authenticates and keeps cookies around every request: a backend needs none of it;
- answers are parsed into dataclasses that copy themselves at every level (35 ms of CPU for 128 tokens with logprobs);
- each streamed call leaves an entry on the client's exit stack until that is closed: so each has a client of its own.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.utils._http import hf_raise_for_status

from gateway.types import JsonObject

# Whatever is given here is never sent; without it the hub's client would look for the user's token on disk.
_NO_TOKEN = "unused"  # noqa: S105 - the opposite of one


_BOM = codecs.BOM_UTF8  # some proxies put one before JSON


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole response: its JSON, of whatever shape, and its headers."""

    body: Any
    headers: Mapping[str, str]


_STREAM_OPTIONS: Mapping[str, bool] = {"include_usage": True}


class BackendHttp(httpx2.AsyncClient):
    """The HTTP client under the hub's: requests leave with these headers and no others, straight to the transport.

    Args:
        transport: Where requests go.
        api_key: Bearer token for the backend; empty sends none.
        connect_timeout_s: Longest time to open a connection.
    """

    def __init__(self, transport: httpx2.AsyncBaseTransport, *, api_key: str, connect_timeout_s: float) -> None:
        super().__init__(transport=transport, trust_env=False)
        self._wire = transport
        self._connect_timeout_s = connect_timeout_s
        self._urls: dict[str, httpx2.URL] = {}
        authorization = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._get_headers = httpx2.Headers({"accept": "*/*", "accept-encoding": "identity", **authorization})
        self._post_headers = httpx2.Headers({**self._get_headers, "content-type": "application/json"})

    def build_request(
        self, method: str, url: httpx2.URL | str, *, json: object = None, timeout: Any = None, **_ignored: Any
    ) -> httpx2.Request:
        """Build a request with this client's own headers, whatever others the caller would like to add.

        Raises:
            orjson.JSONEncodeError: The body is not representable in JSON (a lone surrogate in a message).
        """
        return httpx2.Request(
            method,
            self._parsed(str(url)),
            headers=self._get_headers if json is None else self._post_headers,
            stream=httpx2.ByteStream(b"" if json is None else orjson.dumps(json)),
            extensions={"timeout": {"read": timeout, "connect": self._connect_timeout_s}},
        )

    async def send(self, request: httpx2.Request, *, stream: bool = False, **_ignored: Any) -> httpx2.Response:
        """Send a request; the body is read unless ``stream``, and always when the status is an error's."""
        if stream:
            # Servers close a connection after a stream (llama.cpp without a word): another call must not find it open.
            request.headers["connection"] = "close"
        response = await self._wire.handle_async_request(request)
        if not stream or response.status_code >= 400:
            try:
                await response.aread()
            except BaseException:
                await response.aclose()
                raise
        return response

    def _parsed(self, url: str) -> httpx2.URL:
        parsed = self._urls.get(url)
        if parsed is None:
            parsed = self._urls[url] = httpx2.URL(url)
        return parsed


class HubClient(AsyncInferenceClient):
    """The hub's client for one replica, over a shared ``BackendHttp`` that it does not close.

    What ``chat_completion`` returns has one field, ``body``: the server's JSON, opaque to the hub's parser.
    """

    def __init__(self, http: BackendHttp, url: str, *, timeout_s: float) -> None:
        super().__init__(base_url=url, timeout=timeout_s, token=_NO_TOKEN)
        self._http = http
        self._url = url
        self._timeout_s = timeout_s

    async def completion(self, arguments: JsonObject) -> Whole:
        """One chat completion, as decoded JSON of whatever shape, with its HTTP headers."""
        answer: Any = await self.chat_completion(**arguments)
        whole: Whole = answer["body"]
        return whole

    async def chunks(
        self, arguments: JsonObject, stream_options: Mapping[str, bool] = _STREAM_OPTIONS
    ) -> AsyncGenerator[Any, None]:
        """One streamed chat completion, chunk by chunk, as decoded JSON of whatever shape.

        Closing the generator closes the connection.
        """
        streaming: JsonObject = {"stream": True, "stream_options": stream_options}
        hub = HubClient(self._http, self._url, timeout_s=self._timeout_s)
        async with hub.exit_stack:
            chunks: Any = await hub.chat_completion(**arguments, **streaming)
            async for chunk in chunks:
                yield orjson.loads(chunk["body"])

    def held(self) -> int:
        """Entries on the exit stack, on which each streamed call of the hub's own client leaves one: here always 0."""
        return len(self.exit_stack._exit_callbacks)  # type: ignore[attr-defined]  # contextlib tells it no other way

    async def _get_async_client(self) -> httpx2.AsyncClient:
        return self._http

    async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
        if stream:
            return _opaque(await super()._inner_post(request_parameters, stream=True))
        # Not the hub's own: it gives the body without the headers.
        response = await self._http.post(request_parameters.url, json=request_parameters.json, timeout=self.timeout)
        hf_raise_for_status(response)
        return {"body": Whole(orjson.loads(response.content.removeprefix(_BOM)), response.headers)}


async def _opaque(lines: Any) -> AsyncIterator[str]:
    """Wrap each event of a stream into one string, which the hub's parser lets through as it is."""
    async for raw in lines:
        line = raw.removeprefix("\ufeff")  # a byte order mark may begin a stream
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if data and line.startswith("data:"):
            yield f"data: {orjson.dumps({'body': data}).decode()}"
