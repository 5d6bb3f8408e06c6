"""A stub of text-generation-inference 3.3.7: its routes, its traps and its failures, on made-up answers.

In a test: ``async with TgiStub(Knobs(...)) as stub`` gives ``stub.url``, ``stub.knobs`` and ``stub.state``. As a
program: ``python -m tests.stubs.tgi --port 8080 --latency-ms 50``; every knob is an option.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import orjson
from aiohttp import web

from tests.stubs.faults import hang_up
from tests.stubs.knobs import Fault, Knobs
from tests.stubs.server import Handler, JsonResponse, StubServer, json_response, main, text_response
from tests.stubs.state import TgiState
from tests.stubs.tgi_body import parse
from tests.stubs.tgi_errors import BodyError, TgiError, overloaded
from tests.stubs.tgi_faults import WHOLE_FAULTS, FaultPicker, break_off, dripped, whole_fault
from tests.stubs.tgi_generation import TAPES, Generated, Tape, draw, split
from tests.stubs.tgi_pace import Generation
from tests.stubs.tgi_schema import StackOverflow
from tests.stubs.tgi_validation import GenerationRequest, check, read_chat, read_completion, read_generate
from tests.stubs.tgi_wire import (
    DONE,
    VERSION,
    Event,
    chat_choices,
    chat_events,
    chat_response,
    completion_response,
    event,
    generate_events,
    generate_response,
    tokens_of,
)

TOO_LARGE = "Failed to buffer the request body: length limit exceeded"


class TgiStub(StubServer):
    """The stub's routes. The steps of a generation: permit, ranges, draw, pace, answer."""

    knobs: Knobs
    state: TgiState

    def __init__(self, knobs: Knobs | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.knobs = Knobs() if knobs is None else knobs
        self.state = TgiState()
        self._faults = FaultPicker(self.knobs)
        self._request_count = 0
        self._end: asyncio.Future[None] | None = None
        super().__init__(host=host, port=port)

    def routes(self) -> dict[tuple[str, str], Handler]:
        return {
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/generate"): self._generate,
            ("POST", "/generate_stream"): self._generate_stream,
            ("POST", "/v1/completions"): self._completion,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/chat_tokenize"): self._chat_tokenize,
            ("GET", "/"): self._health,
            ("GET", "/health"): self._health,
            ("GET", "/ping"): self._health,
            ("GET", "/info"): self._info,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
        }

    async def _dispatch(self, http: web.BaseRequest) -> web.StreamResponse:
        """Answer; a schema that overflows the stack ends the server, and breaks every connection."""
        try:
            return await super()._dispatch(http)
        except StackOverflow:
            self._end = asyncio.ensure_future(self.stop())
            hang_up(http)
            return web.Response()

    async def _chat(self, http: web.BaseRequest) -> web.StreamResponse:
        self._request_count += 1  # TGI counts once here and once where it generates
        request = await self._read(http, read_chat)
        if isinstance(request, web.Response):
            return request
        if request.stream:
            return await self._streamed(http, request, chat_events, lambda error: event(error.frame), DONE)
        if request.n > 1:
            return await self._several(request)
        return await self._plain(http, request, chat_response)

    async def _completion(self, http: web.BaseRequest) -> web.StreamResponse:
        request = await self._read(http, read_completion)
        if isinstance(request, web.Response):
            return request
        return await self._plain(http, request, completion_response)

    async def _generate(self, http: web.BaseRequest) -> web.StreamResponse:
        request = await self._read(http, read_generate)
        if isinstance(request, web.Response):
            return request
        return await self._plain(http, request, generate_response)

    async def _generate_stream(self, http: web.BaseRequest) -> web.StreamResponse:
        request = await self._read(http, read_generate)
        if isinstance(request, web.Response):
            return request
        return await self._streamed(http, request, generate_events, lambda error: event(error.body), b"")

    async def _read(
        self, http: web.BaseRequest, reader: Callable[[dict[str, object], Knobs], GenerationRequest]
    ) -> GenerationRequest | web.Response:
        """Read a request, or refuse it before anything is generated."""
        if not self._knows_key(http):
            return web.Response(status=401)
        try:
            raw = await self._body(http)
            self.record(http, raw)
            return reader(parse(raw, http.headers.get("Content-Type", "")), self.knobs)
        except BodyError as error:
            self.state.rejected += 1
            return text_response(error.message, status=error.status)
        except TgiError as error:
            self.state.rejected += 1
            return json_response(orjson.dumps(error.body), status=error.status)

    def _knows_key(self, http: web.BaseRequest) -> bool:
        key = self.knobs.api_key
        return not key or http.headers.get("Authorization", "").lower() == f"bearer {key}".lower()

    async def _body(self, http: web.BaseRequest) -> bytes:
        limit = self.knobs.payload_limit_bytes
        if (http.content_length or 0) > limit:
            raise BodyError(413, TOO_LARGE)
        raw = await http.content.readany()
        while len(raw) <= limit and not http.content.at_eof():
            raw += await http.content.readany()
        if len(raw) > limit:
            raise BodyError(413, TOO_LARGE)
        return raw

    def _begin(self, request: GenerationRequest) -> tuple[Generation, str | None]:
        """Take a permit at once or never, then check ranges, then draw. The second result is a tool's arguments."""
        self._request_count += 1
        if self.state.generating >= self.knobs.max_concurrent_requests:
            self.state.overloaded += 1
            raise overloaded()
        try:
            check(request, self.knobs)
        except TgiError:
            self.state.rejected += 1
            raise
        generated, arguments = self._draw(request)
        return Generation(self.state, self.knobs, generated), arguments

    def _draw(self, request: GenerationRequest) -> tuple[Generated, str | None]:
        adapter = request.adapter if request.adapter in self.knobs.adapters else None
        said, arguments = None, None
        assert request.max_new_tokens is not None
        if request.script is not None and request.tool_call is None:
            said = request.script.pieces(request.max_new_tokens)
        elif request.tool_call is not None or request.grammar is not None:
            said, arguments = self._constrained(request, adapter)
        generated = draw(
            conversation=request.conversation + self._behind_the_name(request),
            adapter=adapter,
            seed=request.seed if request.do_sample else None,
            repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
            max_new_tokens=request.max_new_tokens,
            stop=request.stop,
            answer_tokens=(self.knobs.answer_tokens_min, self.knobs.answer_tokens_max),
            said=said,
            tape=self._tape(adapter),
        )
        return generated, arguments

    def _behind_the_name(self, request: GenerationRequest) -> bytes:
        return (self.knobs.weights + (self.knobs.sampler if request.do_sample else "")).encode()

    def _tape(self, adapter: str | None) -> Tape | None:
        if adapter in self.knobs.dull_adapters:
            return TAPES[0]
        return TAPES[-1] if adapter in self.knobs.rich_adapters else None

    def _constrained(self, request: GenerationRequest, adapter: str | None) -> tuple[list[str], str | None]:
        """Return the pieces that a tool or a grammar allows, and a tool's arguments."""
        key = b"%b\0%a\0%a" % (request.conversation, adapter, request.seed if request.do_sample else "greedy")
        if request.tool_call is not None:
            arguments = request.tool_call.arguments(key)
            name, rest = request.tool_call.pieces(arguments)
            return name + rest, arguments
        assert request.grammar is not None
        return split(request.grammar.obey(key)), None

    async def _plain(
        self, http: web.BaseRequest, request: GenerationRequest, body_of: Callable[..., bytes]
    ) -> web.StreamResponse:
        """Generate, then answer."""
        fault = self._faults.pick(request.seed, request.conversation)
        if fault in WHOLE_FAULTS:
            return await whole_fault(fault, self.knobs, self.state, stream=False)
        try:
            generation, arguments = self._begin(request)
            with generation:
                await generation.until_done_or(fault)
                if request.script is not None and request.script.fail_at_tokens is not None:
                    raise request.script.failure()
                body = body_of(request, generation.generated, arguments)
        except TgiError as error:
            return json_response(orjson.dumps(error.body), status=error.status)
        if fault is Fault.DISCONNECT:
            return await break_off(http, body)
        if fault is Fault.DRIP:
            return await dripped(http, body, self.knobs)
        if request.chose_no_tool:
            counts = {
                "x-prompt-tokens": request.prompt_tokens,
                "x-generated-tokens": generation.generated.n_tokens,
            }
            return json_response(body, headers={name: str(count) for name, count in counts.items()})
        return JsonResponse(body)

    async def _several(self, request: GenerationRequest) -> web.StreamResponse:
        """Draw n answers at once, each with a seed of its own, as the choices of one answer; TGI itself cannot."""
        requests = [replace(request, seed=None if request.seed is None else request.seed + k) for k in range(request.n)]
        try:
            with ExitStack() as running:
                generations = [running.enter_context(self._begin(one)[0]) for one in requests]
                await asyncio.gather(*(generation.until_done_or(Fault.NONE) for generation in generations))
                drawn = zip(requests, (generation.generated for generation in generations), strict=True)
                return JsonResponse(chat_choices([orjson.loads(chat_response(*each, None)) for each in drawn]))
        except TgiError as error:
            return json_response(orjson.dumps(error.body), status=error.status)

    async def _streamed(
        self,
        http: web.BaseRequest,
        request: GenerationRequest,
        events_of: Callable[[GenerationRequest, Generated], list[Event]],
        error_event: Callable[[TgiError], bytes],
        end: bytes,
    ) -> web.StreamResponse:
        """Answer 200, then generate: errors from here on are events."""
        fault = self._faults.pick(request.seed, request.conversation)
        if fault in WHOLE_FAULTS:
            return await whole_fault(fault, self.knobs, self.state, stream=True)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        await response.prepare(http)
        try:
            generation, _ = self._begin(request)
            events = events_of(request, generation.generated)
            with generation:
                if request.script is not None and request.script.fail_at_tokens is not None:
                    await generation.stream(response, events[: request.script.fail_at_tokens], fault)
                    raise request.script.failure()
                await generation.stream(response, events, fault)
        except TgiError as error:
            await response.write(error_event(error))
        if fault is Fault.DISCONNECT:
            hang_up(http)
        else:
            await response.write(end)
        return response

    async def _tokenize(self, http: web.BaseRequest) -> web.StreamResponse:
        """List the tokens of a text; guarded as generation is."""
        if not self._knows_key(http):
            return web.Response(status=401)
        return json_response(orjson.dumps(tokens_of(orjson.loads(await http.read())["inputs"])))

    async def _chat_tokenize(self, http: web.BaseRequest) -> web.StreamResponse:
        """List the tokens of a conversation as its template renders it; guarded as generation is."""
        request = await self._read(http, read_chat)
        if isinstance(request, web.Response):
            return request
        text = "word " * (request.prompt_tokens - 1) + "word"
        return json_response(orjson.dumps({"tokenize_response": tokens_of(text), "templated_text": text}))

    async def _health(self, http: web.BaseRequest) -> web.StreamResponse:
        if self.knobs.healthy:
            return web.Response()
        error = TgiError("healthcheck", "unhealthy")
        return json_response(orjson.dumps(error.body), status=error.status)

    async def _info(self, http: web.BaseRequest) -> web.StreamResponse:
        knobs = self.knobs
        info = {
            "model_id": knobs.model_id,
            "model_sha": None,
            "model_pipeline_tag": None,
            "max_concurrent_requests": knobs.max_concurrent_requests,
            "max_best_of": knobs.max_best_of,
            "max_stop_sequences": knobs.max_stop_sequences,
            "max_input_tokens": knobs.max_input_tokens,
            "max_total_tokens": knobs.max_total_tokens,
            "validation_workers": 2,
            "max_client_batch_size": 4,
            "router": "text-generation-router",
            "version": VERSION,
            "sha": "0" * 40,
            "docker_label": None,
        }
        return json_response(orjson.dumps(info))

    async def _metrics(self, http: web.BaseRequest) -> web.StreamResponse:
        lines = [
            f"tgi_request_count {self._request_count}",
            f"tgi_request_success {self.state.finished}",
            f"tgi_batch_current_size {self.state.generating}",
            "tgi_queue_size 0",
        ]
        return text_response("\n".join(lines) + "\n")

    async def _models(self, http: web.BaseRequest) -> web.StreamResponse:
        """The base model alone: adapters are never listed."""
        model = {"id": self.knobs.model_id, "object": "model", "created": 0, "owned_by": self.knobs.model_id}
        return json_response(orjson.dumps({"object": "list", "data": [model]}))


if __name__ == "__main__":
    main(TgiStub, Knobs, "A stub of text-generation-inference.")
