"""The caller's connection: reading a body, callers who hang up, and streams until their end of any kind."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message

from gateway.api.connection import ClientGone, EventStream, cancel_on_disconnect, read_body
from gateway.errors import (
    BackendFailed,
    InvalidRequest,
    NotReady,
    RequestTooLarge,
    RequestTooSlow,
    UnsupportedContentType,
)

JSON = (b"content-type", b"application/json; charset=utf-8")


class Caller:
    """An ASGI caller: sends its parts, then stays until it hangs up."""

    def __init__(self, *parts: bytes) -> None:
        self.gone = asyncio.Event()
        self.sent: list[Message] = []
        self._parts = list(parts)

    async def receive(self) -> Message:
        if self._parts:
            body = self._parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._parts)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def heard(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]

    def request(self, *headers: tuple[bytes, bytes]) -> Request:
        return Request({"type": "http", "headers": [JSON, *headers]}, self.receive)


class Source:
    """Events that a test releases one by one; ``closed`` once it is closed."""

    def __init__(self, *events: bytes | Exception) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.closed = False
        for event in events:
            self.queue.put_nowait(event)

    async def events(self) -> AsyncGenerator[bytes]:
        try:
            while (event := await self.queue.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.closed = True


def stream_of(source: Source, *, keep_alive_s: float = 5.0) -> EventStream:
    return EventStream(
        source.events(), keep_alive_s=keep_alive_s, keep_alive=b": alive", on_error=lambda error: error.message.encode()
    )


async def test_a_body_in_parts_is_one_body() -> None:
    assert b'{"a": 1}' == await read_body(Caller(b'{"a"', b"", b": 1}").request(), limit_bytes=8, timeout_s=5)


async def test_a_body_at_its_limit_is_read_and_one_byte_more_is_not() -> None:
    for headers in ([], [(b"content-length", b"9")]):
        with pytest.raises(RequestTooLarge, match="8 bytes"):
            await read_body(Caller(b"12345", b"6789").request(*headers), limit_bytes=8, timeout_s=5)


@pytest.mark.parametrize(
    ("declared", "refused"), [(b"7", False), (b"8", False), (b"9", True), (b"-9", False), (b"many", False)]
)
async def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read(
    declared: bytes, refused: bool
) -> None:
    caller = Caller(b"{", b"}")
    reading = read_body(caller.request((b"content-length", declared)), limit_bytes=8, timeout_s=5)
    if refused:
        with pytest.raises(RequestTooLarge, match="over this server's limit of 8 bytes"):
            await reading
        assert 2 == len(caller._parts)
    else:
        assert b"{}" == await reading


@pytest.mark.parametrize(("limit_bytes", "refused"), [(99, True), (100, False), (101, False)])
async def test_a_compressed_body_is_measured_as_it_is_read(limit_bytes: int, refused: bool) -> None:
    packed = gzip.compress(b"a" * 100)
    caller = Caller(packed[:10], packed[10:])
    reading = read_body(caller.request((b"content-encoding", b"gzip")), limit_bytes=limit_bytes, timeout_s=5)
    if refused:
        with pytest.raises(RequestTooLarge, match="decompressed"):
            await reading
    else:
        assert b"a" * 100 == await reading


async def test_a_compressed_body_that_ends_early_is_refused() -> None:
    caller = Caller(gzip.compress(b"a" * 100)[:-1])
    with pytest.raises(InvalidRequest, match="cut short"):
        await read_body(caller.request((b"content-encoding", b"gzip")), limit_bytes=1000, timeout_s=5)


@pytest.mark.parametrize(
    ("content_type", "read"),
    [
        (b"application/json", True),
        (b" Application/JSON ;charset=utf-8; x=y", True),
        (b"application/json2", False),
        (b"text/plain", False),
        (b"text/plain; application/json", False),
        (b"", False),
        (None, False),
    ],
)
async def test_a_body_must_be_declared_as_json(content_type: bytes | None, read: bool) -> None:
    headers = [] if content_type is None else [(b"content-type", content_type)]
    reading = read_body(
        Request({"type": "http", "headers": headers}, Caller(b"{}").receive), limit_bytes=8, timeout_s=5
    )
    if read:
        assert b"{}" == await reading
    else:
        with pytest.raises(UnsupportedContentType, match="content-type: application/json"):
            await reading


async def test_a_slow_upload_is_refused_with_its_time_limit() -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b" ", "more_body": True}

    with pytest.raises(RequestTooSlow, match=r"did not arrive within 0\.05 seconds"):
        await read_body(Request({"type": "http", "headers": [JSON]}, receive), limit_bytes=10**6, timeout_s=0.05)


async def test_a_caller_who_hangs_up_in_the_body_is_reported_as_gone() -> None:
    caller = Caller(b"{", b"}")
    caller._parts.pop()
    caller.gone.set()

    async def receive() -> Message:
        message = await caller.receive()
        return {**message, "more_body": True}

    with pytest.raises(ClientGone):
        await read_body(Request({"type": "http", "headers": [JSON]}, receive), limit_bytes=8, timeout_s=5)


async def test_work_is_done_while_its_caller_stays() -> None:
    async def work() -> int:
        return 42

    assert 42 == await cancel_on_disconnect(Caller(b"").receive, work())


async def test_work_has_ended_when_client_gone_is_raised() -> None:
    caller, ended = Caller(), asyncio.Event()

    async def work() -> None:
        try:
            caller.gone.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ClientGone):
        await cancel_on_disconnect(caller.receive, work())
    assert ended.is_set()


async def test_an_error_of_the_work_reaches_its_caller() -> None:
    async def work() -> None:
        raise BackendFailed("no")

    with pytest.raises(BackendFailed):
        await cancel_on_disconnect(Caller().receive, work())


async def test_a_stream_sends_its_events_and_ends() -> None:
    caller, source = Caller(), Source(b"one", b"two")
    source.queue.put_nowait(None)
    stream = stream_of(source)
    await stream.start(caller.receive)
    await stream({"type": "http"}, caller.receive, caller.send)
    assert 200 == caller.sent[0]["status"]
    assert [b"one", b"two", b""] == caller.heard
    headers = dict(caller.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers
    assert source.closed


async def test_a_streams_messages_are_those_of_an_event_stream() -> None:
    caller, source, ends = Caller(), Source(b"one"), []
    source.queue.put_nowait(None)
    stream = EventStream(
        source.events(), keep_alive_s=5.0, keep_alive=b"", on_error=lambda _: b"", on_end=lambda: ends.append(1)
    )
    await stream({"type": "http"}, caller.receive, caller.send)
    start, *bodies = caller.sent
    assert ("http.response.start", 200) == (start["type"], start["status"])
    assert {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache",
        b"x-accel-buffering": b"no",
    } == dict(start["headers"])
    assert [
        {"type": "http.response.body", "body": b"one", "more_body": True},
        {"type": "http.response.body", "body": b""},
    ] == bodies
    assert [1] == ends


async def test_a_streams_error_is_followed_by_its_end() -> None:
    caller, source = Caller(), Source(BackendFailed("it broke"))
    await stream_of(source)({"type": "http"}, caller.receive, caller.send)
    assert [
        {"type": "http.response.body", "body": b"it broke", "more_body": True},
        {"type": "http.response.body", "body": b""},
    ] == caller.sent[1:]


async def test_the_first_event_is_awaited_no_longer_than_a_silence_may_last() -> None:
    caller, source = Caller(), Source()
    stream = stream_of(source, keep_alive_s=0.02)
    await asyncio.wait_for(stream.start(caller.receive), timeout=5)
    source.queue.put_nowait(b"late")
    source.queue.put_nowait(None)
    await stream({"type": "http"}, caller.receive, caller.send)
    assert b"late" in caller.heard


async def test_silence_is_broken_by_comments() -> None:
    caller, source = Caller(), Source()
    stream = stream_of(source, keep_alive_s=0.01)
    await stream.start(caller.receive)
    sending = asyncio.create_task(stream({"type": "http"}, caller.receive, caller.send))
    while b": alive" not in caller.heard:
        await asyncio.sleep(0)
    source.queue.put_nowait(b"one")
    source.queue.put_nowait(None)
    await sending
    assert [b"one", b""] == [heard for heard in caller.heard if heard != b": alive"]


async def test_an_error_before_the_first_event_is_raised() -> None:
    source = Source(BackendFailed("no"))
    with pytest.raises(BackendFailed):
        await stream_of(source).start(Caller().receive)
    assert source.closed


async def test_an_error_after_the_first_event_is_an_event() -> None:
    caller, source = Caller(), Source(b"one", BackendFailed("it broke"))
    stream = stream_of(source)
    await stream.start(caller.receive)
    await stream({"type": "http"}, caller.receive, caller.send)
    assert [b"one", b"it broke", b""] == caller.heard
    assert source.closed


async def test_a_defect_in_mid_stream_ends_the_stream() -> None:
    caller, source = Caller(), Source(b"one", ZeroDivisionError("ours"))
    stream = stream_of(source)
    await stream.start(caller.receive)
    with pytest.raises(ZeroDivisionError):
        await stream({"type": "http"}, caller.receive, caller.send)
    assert b"" not in caller.heard
    assert source.closed


@pytest.mark.parametrize("when", ["before the first event", "between events"])
async def test_the_source_is_closed_when_the_caller_hangs_up(when: str) -> None:
    caller, source = Caller(), Source()
    stream = stream_of(source)
    if when == "before the first event":
        caller.gone.set()
        with pytest.raises(ClientGone):
            await stream.start(caller.receive)
    else:
        source.queue.put_nowait(b"one")
        await stream.start(caller.receive)

        async def send(message: Any) -> None:
            await caller.send(message)
            if message.get("body") == b"one":
                caller.gone.set()

        await stream({"type": "http"}, caller.receive, send)
        assert [b"one"] == caller.heard
    assert source.closed


async def test_a_request_cut_by_the_servers_stop_is_a_503_and_its_work_has_ended() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    request = asyncio.create_task(cancel_on_disconnect(Caller().receive, work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(NotReady, match="shutting down"):
        await request
    assert ended.is_set()


async def test_a_stream_cut_by_the_servers_stop_ends_with_an_error_event() -> None:
    caller, source = Caller(), Source(b"one")
    stream = stream_of(source)
    await stream.start(caller.receive)
    sending = asyncio.create_task(stream({"type": "http"}, caller.receive, caller.send))
    while len(caller.heard) < 1:
        await asyncio.sleep(0)
    sending.cancel()
    await sending
    assert [b"one", b"this gateway is shutting down; the request was cut"] == caller.heard
    assert source.closed
