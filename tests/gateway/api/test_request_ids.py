"""Every log line of a request has its id: from api, race, backend, rewards and journal."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.journal.spool import SegmentWriter
from gateway.telemetry import configure_logging
from tests.serving import Serve
from tests.stubs.knobs import Fault, Knobs

# Lines about the process, its disk, or a batch that serves many requests.
OF_NO_REQUEST = {
    "started",
    "stopped",
    "policy_refresh_failed",
    "backend_identified",
    "containment_not_shared",
    "journal_not_shipping",
    "spool_refuses_records",
}


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the log lines since the last call, without uvicorn's own."""
    written = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return [line for line in written if " " not in line["event"]]


async def test_every_log_line_of_a_request_has_its_id_whichever_part_writes_it(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging("debug", "json")
    served = await serve(api={"keep_alive_s": 0.05}, tgi=Knobs(latency_ms=10.0))
    dead = await serve(backend={"urls": ("http://127.0.0.1:9", served.tgi.url)})
    seen = set()

    def all_carry(request_id: str) -> None:
        for line in lines(capsys):
            seen.add(line["event"])
            assert line.get("request") == (None if line["event"] in OF_NO_REQUEST else request_id), line

    async def ask(to: Any, request_id: str, **fields: Any) -> None:
        await to.chat(headers={"x-request-id": request_id}, **fields)
        all_carry(request_id)

    await ask(served, "good", best_of=3)
    await ask(served, "refused", temperature=9)
    await ask(dead, "replica-away", best_of=2)
    served.tgi.knobs.update({"fault": Fault.GARBAGE, "fault_probability": 1.0, "latency_ms": 300.0})
    await ask(served, "unreadable", best_of=2)
    await ask(served, "unreadable-late", best_of=2, stream=True)
    served.tgi.knobs.update({"fault": Fault.NONE})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegmentWriter, "write", full)
    await ask(served, "disk-full", best_of=2)
    assert {
        "completion",
        "refused",
        "backend_replica_replaced",
        "backend_answer_unreadable",
        "reward_server_met",
        "record_not_durable",
    } <= seen


async def test_requests_at_the_same_time_keep_their_ids_apart(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    served = await serve(tgi=Knobs(latency_ms=20.0))
    ids = [f"r-{number}" for number in range(8)]
    answers = await asyncio.gather(*(served.chat(best_of=3, headers={"x-request-id": own}) for own in ids))
    completions = {line["request"]: line["completion"] for line in lines(capsys) if line["event"] == "completion"}
    assert {own: answer.json()["id"] for own, answer in zip(ids, answers, strict=True)} == completions
