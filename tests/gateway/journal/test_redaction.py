"""A redaction gets every text of a record; if it fails, no text is recorded."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.errors import SettingsError
from gateway.journal.record import CompletionRecord, FeedbackRecord, Record, encode
from gateway.journal.redaction import Redaction, load_redaction
from tests.distill.dataset.records import candidate, race, rated
from tests.redis_server import RedisServer
from tests.serving import Serve

SECRET = "4111-1111"
HANGS = threading.Event()


def hide(text: str) -> str:
    return text.replace(SECRET, "[card]")


def fail(text: str) -> str:
    raise ZeroDivisionError(text)


def hang(text: str) -> str:
    HANGS.wait(30)
    return text


def no_text(_: str) -> Any:
    return None


def full() -> CompletionRecord:
    """Return a completion with the secret in every place of a text."""
    call = {"id": "call-1", "type": "function", "function": {"name": "pay", "arguments": f'{{"card": "{SECRET}"}}'}}
    record = race(
        prompt=f"charge {SECRET}",
        candidates=[candidate(0, 1.0, text=f"charged {SECRET}", tool_calls=[call]), candidate(1, 0.0, text="no")],
    )
    tool = {"type": "function", "function": {"name": "pay", "description": SECRET}}
    return replace(
        record,
        messages=[
            *(record.messages or []),
            {"role": "user", "content": [{"type": "text", "text": SECRET}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        user=f"user {SECRET}",
        metadata={"card": SECRET},
        sampling=replace(record.sampling, stop=(SECRET,), tools=(tool,), response_format={"schema": {"const": SECRET}}),
    )


async def test_every_text_is_redacted_and_nothing_else_changes() -> None:
    record = full()
    redacted = await Redaction(hide, timeout_s=5).apply(record)
    assert SECRET not in encode(redacted).decode()
    assert orjson.loads(encode(record).replace(SECRET.encode(), b"[card]")) == orjson.loads(encode(redacted))


async def test_a_comment_is_redacted() -> None:
    redacted = await Redaction(hide, timeout_s=5).apply(replace(rated("chatcmpl-1", 1.0), comment=f"paid {SECRET}"))
    assert isinstance(redacted, FeedbackRecord)
    assert "paid [card]" == redacted.comment


@pytest.mark.parametrize("redact", [fail, hang, no_text])
async def test_after_a_failure_the_record_has_no_content_and_all_numbers(
    redact: Any, caplog: pytest.LogCaptureFixture
) -> None:
    redaction = Redaction(redact, timeout_s=0.1)
    try:
        completion = await redaction.apply(full())
        comment = await redaction.apply(replace(rated("chatcmpl-1", 1.0), comment=SECRET))
    finally:
        HANGS.set()
        redaction.close()
    for kept in (completion, comment):
        assert SECRET not in encode(kept).decode()
    assert isinstance(completion, CompletionRecord)
    assert (False, None, [1.0, 0.0]) == (
        completion.store,
        completion.messages,
        [c.reward for c in completion.candidates],
    )
    assert {None} == {c.text for c in completion.candidates}
    assert 2 == redaction.failures
    assert SECRET not in caplog.text
    HANGS.clear()


async def test_a_record_without_content_is_not_redacted() -> None:
    record: Record = replace(race(), store=False, messages=None)
    redaction = Redaction(fail, timeout_s=5)
    assert record == await redaction.apply(record)
    assert 0 == redaction.failures


@pytest.mark.parametrize("name", ["os", "os:nothing", "no.such:thing", ":", "os:sep", "..x:y"])
def test_a_name_of_no_function_is_fatal(name: str) -> None:
    with pytest.raises(SettingsError, match="GATEWAY_JOURNAL__REDACT"):
        load_redaction(name)


@pytest.mark.parametrize(("function", "stored"), [("hide", True), ("fail", False)])
async def test_neither_spool_nor_stream_has_the_redacted_text(
    serve: Serve, redis_server: RedisServer, tmp_path: Path, function: str, stored: bool
) -> None:
    served = await serve(journal={"redact": f"{__name__}:{function}"})
    redis_server.pause()
    messages = [{"role": "user", "content": f"my card is {SECRET}"}]
    answer = await served.chat(best_of=2, messages=messages)
    assert 200 == answer.status_code
    spooled = [path.read_bytes() for path in (tmp_path / "spool").rglob("*") if path.is_file()]
    assert any(answer.json()["id"].encode() in content for content in spooled)
    assert not any(SECRET.encode() in content for content in spooled)
    redis_server.resume()
    [record] = await served.records(1)
    assert isinstance(record, CompletionRecord)
    assert SECRET not in encode(record).decode()
    assert stored == record.store
    detail = (await served.http.get("/health/ready")).json()["parts"]["journal"]["detail"]
    assert stored != ("redaction failed" in detail)
