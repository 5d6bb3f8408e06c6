"""A request that breaks servers is contained, and the log names the key that sent it."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.api.keyfile import new_key
from tests.serving import MESSAGES, Serve
from tests.stubs.knobs import Fault, Knobs

BOOM = [{"role": "user", "content": "boom"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_each_break_is_logged_with_the_keys_name_and_no_text(serve: Serve, tmp_path: Path, stream: bool) -> None:
    """The second break contains the request. The other key's request is served and not logged."""
    guilty, innocent = new_key("mobile"), new_key("web")
    (tmp_path / "keys").write_text(guilty[1] + "\n" + innocent[1])
    served = await serve(
        Knobs(fault=Fault.DISCONNECT, fault_text="boom"),
        api={"keys_file": tmp_path / "keys"},
        policy={"n": 1},
        backend={"unhealthy_s": 0},
    )
    sent = [(guilty, BOOM), (innocent, MESSAGES), (guilty, BOOM), (guilty, BOOM), (innocent, MESSAGES)]
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as logs:
        answers = [
            await served.chat(messages=messages, stream=stream, headers={"Authorization": f"Bearer {key}"})
            for (key, _), messages in sent
        ]
    broke = [line for line in logs if line["event"] == "request_broke_server"]
    assert [(1, "mobile"), (2, "mobile")] == [(line["breaks"], line["key"]) for line in broke]
    assert all(line["request"] for line in broke)
    assert "boom" not in str(logs)
    assert [200, 200] == [answers[place].status_code for place in (1, 4)]
    assert [(503, "request_contained")] * 2 == [
        (answer.status_code, answer.json()["error"]["code"]) for answer in answers[2:4]
    ]
