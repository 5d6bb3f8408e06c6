"""Ratings of answers go into the journal."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.journal.record import FeedbackRecord
from gateway.journal.writer import Journal
from tests.gateway.api.conftest import Shared
from tests.redis_server import RedisServer
from tests.serving import Serve

ID = "chatcmpl-" + "0" * 32


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"id": None}, "id"),
        ({"id": "chatcmpl-1"}, "id"),
        ({"id": ID + "\n"}, "id"),
        ({"rating": None}, "rating"),
        ({"rating": "good"}, "rating"),
        ({"rating": True}, "rating"),
        ({"rating": 1.01}, "rating"),
        ({"rating": -2}, "rating"),
        ({"comment": 5}, "comment"),
        ({"comment": "a" * 10_001}, "comment"),
        ({"stars": 5}, "stars"),
    ],
)
async def test_bad_feedback_names_its_field_and_is_not_recorded(
    gateway: Shared, fields: dict[str, Any], param: str
) -> None:
    response = await gateway.served.http.post("/v1/feedback", json={"id": ID, "rating": 1, **fields})
    error = response.json()["error"]
    assert (400, "invalid_value", param) == (response.status_code, error["code"], error["param"])
    await gateway.assert_unharmed()


@pytest.mark.asyncio(loop_scope="module")
async def test_a_body_that_is_too_large_or_no_json_is_refused(gateway: Shared) -> None:
    for content, headers, status in (
        (b"{", {}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b" " * 1_000_001, {}, 413),
    ):
        assert status == (await gateway.post(content, headers, "/v1/feedback")).status_code
    await gateway.assert_unharmed()


async def test_a_rating_is_recorded_as_it_was_given(serve: Serve, redis_server: RedisServer) -> None:
    served = await serve()
    response = await served.http.post("/v1/feedback", json={"id": ID, "rating": -0.5, "comment": "Too long. 😕"})
    assert {"id": ID, "object": "feedback", "recorded": True} == response.json()
    [record] = await served.records(1)
    assert isinstance(record, FeedbackRecord)
    assert (ID, -0.5, "Too long. 😕", None) == (record.completion_id, record.rating, record.comment, record.key_id)


async def test_a_rating_that_cannot_be_recorded_is_a_503(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = await serve()

    async def full_disk(*_: object) -> bool:
        return False

    monkeypatch.setattr(Journal, "append", full_disk)
    response = await served.http.post("/v1/feedback", json={"id": ID, "rating": 1})
    assert (503, "not_ready") == (response.status_code, response.json()["error"]["code"])
    # An answer is not withheld because of the journal: the loss is counted.
    assert 200 == (await served.chat(best_of=2)).status_code
    assert "ratchet_journal_not_durable_total 1.0" in (await served.http.get("/metrics")).text
