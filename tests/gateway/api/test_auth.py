"""API keys: what a key file may hold, who may pass, and what a caller is told."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from gateway.api.auth import ApiKeys, new_key
from gateway.errors import AuthenticationFailed, SettingsError
from gateway.journal.record import CompletionRecord, FeedbackRecord
from tests.redis_server import RedisServer
from tests.serving import Serve


def test_a_new_key_passes_and_its_id_is_the_start_of_its_hash(tmp_path: Path) -> None:
    key, line = new_key("app-1")
    (tmp_path / "keys").write_text(f"# ours\n\n{line}  # since spring\n")
    keys = ApiKeys.read(tmp_path / "keys")
    assert hashlib.sha256(key.encode()).hexdigest()[:16] == keys.authenticate(f"Bearer {key}")
    assert keys.authenticate(f"bearer  {key} ") is not None
    assert key not in line


def test_no_two_keys_are_alike() -> None:
    assert new_key("a")[0] != new_key("a")[0]


@pytest.mark.parametrize("name", ["", "with space", "a" * 65, "tab\there", "line\nbreak", "#"])
def test_a_name_that_the_file_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="a key's name"):
        new_key(name)


def test_without_a_file_nobody_is_asked() -> None:
    keys = ApiKeys.read(None)
    assert (None, None) == (keys.authenticate(None), keys.authenticate("Bearer anything"))


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcg==", "rk-plain", "Bearer rk-guess", "Bearer ä"],
)
def test_every_other_header_is_refused_without_being_quoted(sent: str | None, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n".join(new_key(name)[1] for name in ("a", "b")))
    with pytest.raises(AuthenticationFailed) as refused:
        ApiKeys.read(tmp_path / "keys").authenticate(sent)
    assert "rk-" not in refused.value.message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "holds no key"),
        (b"# nobody yet\n", "holds no key"),
        (b"app rk-plain-text-key\n", "line 1: expected"),
        (b"\napp sha256:abc\n", "line 2: expected"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_bad_key_file_is_fatal_and_says_where(content: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(SettingsError, match=complaint):
        ApiKeys.read(tmp_path / "keys")


def test_a_missing_key_file_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none")


async def test_every_api_route_asks_for_a_key_and_no_health_route_does(
    serve: Serve, redis_server: RedisServer, tmp_path: Path
) -> None:
    key, line = new_key("app")
    (tmp_path / "keys").write_text(line)
    served = await serve(api={"keys_file": tmp_path / "keys"})
    refused = [
        await served.chat(),
        await served.chat(stream=True, headers={"Authorization": "Bearer rk-guess"}),
        await served.http.post("/v1/feedback", json={}),
        await served.http.get("/v1/models"),
        await served.http.get("/v1/models/ratchet"),
    ]
    assert [401] * 5 == [response.status_code for response in refused]
    assert {"Bearer"} == {response.headers["www-authenticate"] for response in refused}
    assert [] == list(served.tgi.state.requests)
    for path in ("/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs"):
        assert 200 == (await served.http.get(path)).status_code

    bearer = {"Authorization": f"Bearer {key}"}
    answer = (await served.chat(headers=bearer)).json()
    rated = await served.http.post("/v1/feedback", json={"id": answer["id"], "rating": 1}, headers=bearer)
    assert 200 == rated.status_code
    completion, feedback = await served.records(2)
    assert isinstance(completion, CompletionRecord)
    assert isinstance(feedback, FeedbackRecord)
    assert hashlib.sha256(key.encode()).hexdigest()[:16] == completion.key_id == feedback.key_id
