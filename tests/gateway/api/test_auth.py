"""API keys: which keys are accepted, the errors of the others, and changes of the file at run time."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.api.auth import ApiKeys
from gateway.api.keyfile import Scope, new_key
from gateway.errors import AuthenticationFailed, PermissionDenied, SettingsError
from gateway.journal.record import CompletionRecord, FeedbackRecord
from gateway.types import Readiness
from tests.redis_server import RedisServer
from tests.serving import Serve


def test_a_new_key_passes_and_its_id_is_the_start_of_its_hash(tmp_path: Path) -> None:
    key, line = new_key("app-1")
    (tmp_path / "keys").write_text(f"# ours\n\n{line}  # since spring\n")
    keys = ApiKeys(tmp_path / "keys")
    known = keys.authenticate(f"Bearer {key}")
    assert known is not None
    assert hashlib.sha256(key.encode()).hexdigest()[:16] == known.id
    assert known == keys.authenticate(f"bearer  {key} ")
    assert key not in line


def test_without_a_file_no_key_is_required() -> None:
    keys = ApiKeys(None)
    assert (None, None) == (keys.authenticate(None), keys.authenticate("Bearer anything", Scope.ADMIN))


@pytest.mark.parametrize(
    "sent",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcg==", "rk-plain", "Bearer rk-guess", "Bearer ä"],
)
def test_any_other_header_is_refused_and_not_quoted(sent: str | None, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n".join(new_key(name)[1] for name in ("a", "b")))
    with pytest.raises(AuthenticationFailed) as refused:
        ApiKeys(tmp_path / "keys").authenticate(sent)
    assert "rk-" not in refused.value.message


def test_a_missing_key_file_is_fatal(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        ApiKeys(tmp_path / "none")


async def test_every_api_route_requires_a_key_and_no_health_route_does(
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


def test_a_key_may_do_what_its_scopes_allow(tmp_path: Path) -> None:
    chat, line = new_key("app", scopes="chat")
    (tmp_path / "keys").write_text(line)
    keys = ApiKeys(tmp_path / "keys")
    assert keys.authenticate(f"Bearer {chat}", Scope.CHAT) == keys.authenticate(f"Bearer {chat}")
    for scope in (Scope.FEEDBACK, Scope.ADMIN):
        with pytest.raises(PermissionDenied, match=f"scope {scope}"):
            keys.authenticate(f"Bearer {chat}", scope)


async def test_each_route_has_its_scope(serve: Serve, tmp_path: Path) -> None:
    made = {scope: new_key(scope, scopes=scope) for scope in Scope}
    (tmp_path / "keys").write_text("\n".join(line for _, line in made.values()))
    served = await serve(api={"keys_file": tmp_path / "keys", "operators": "admin"})
    allowed = {}
    for scope, (key, _) in made.items():
        bearer = {"Authorization": f"Bearer {key}"}
        rating = {"id": f"chatcmpl-{'0' * 32}", "rating": 1}
        answers = {
            "chat": await served.chat(headers=bearer),
            "feedback": await served.http.post("/v1/feedback", json=rating, headers=bearer),
            "metrics": await served.http.get("/metrics", headers=bearer),
            "document": await served.http.get("/openapi.json", headers=bearer),
            "models": await served.http.get("/v1/models", headers=bearer),
        }
        assert {200, 403} >= {answer.status_code for answer in answers.values()}
        allowed[scope] = {name for name, answer in answers.items() if answer.status_code == 200}
    assert {
        Scope.CHAT: {"chat", "models"},
        Scope.FEEDBACK: {"feedback", "models"},
        Scope.ADMIN: {"metrics", "document", "models"},
    } == allowed
    without = [await served.http.get(path) for path in ("/metrics", "/openapi.json", "/docs", "/redoc")]
    assert [401, 401, 404, 404] == [answer.status_code for answer in without]
    assert "ChatCompletionRequest" not in "".join(answer.text for answer in without)
    assert 200 == (await served.http.get("/health/ready")).status_code


async def test_a_changed_file_takes_effect_and_a_malformed_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    old, old_line = new_key("old")
    new, new_line = new_key("new")
    path.write_text(old_line)
    keys = ApiKeys(path)
    for content, reason in ((b"", "empty"), (b"old rk-plain", "malformed"), (None, "gone")):
        path.unlink() if content is None else path.write_bytes(content)
        await keys.reread(path)
        assert keys.authenticate(f"Bearer {old}") is not None, reason
        refused = Readiness(True, "the API key file was changed to one that cannot be used")
        assert refused == await keys.readiness(), reason
    path.write_text(new_line)
    await keys.reread(path)
    assert Readiness(True, "") == await keys.readiness()
    assert keys.authenticate(f"Bearer {new}") is not None
    with pytest.raises(AuthenticationFailed):
        keys.authenticate(f"Bearer {old}")


async def test_a_change_is_logged_with_its_counts_and_each_problem_once(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    lines = [new_key(name)[1] for name in ("a", "b", "c")]
    path.write_text(lines[0])
    keys = ApiKeys(path)
    with capture_logs() as logged:
        for content in ("\n".join(lines), "\n".join(lines), lines[1], "", "", lines[1], ""):
            path.write_text(content)
            await keys.reread(path)
    counts = [tuple(event.get(name) for name in ("event", "keys", "added", "removed", "kept")) for event in logged]
    assert [
        ("api_keys_changed", 3, 2, 0, None),
        ("api_keys_changed", 1, 0, 2, None),
        ("api_keys_refused", None, None, None, 1),
        ("api_keys_changed", 1, 0, 0, None),
        ("api_keys_refused", None, None, None, 1),
    ] == counts


async def test_closing_ends_the_rereading(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(new_key("a")[1])
    keys = ApiKeys(tmp_path / "keys")
    assert Readiness(True, "") == await keys.readiness()
    await keys.aclose()
    keys.start()
    assert "api-keys" in {task.get_name() for task in asyncio.all_tasks()}
    await keys.aclose()
    assert "api-keys" not in {task.get_name() for task in asyncio.all_tasks()}
    without = ApiKeys(None)
    without.start()
    assert "api-keys" not in {task.get_name() for task in asyncio.all_tasks()}
    await without.aclose()


async def test_a_running_gateway_picks_up_a_rotated_key_without_a_restart(serve: Serve, tmp_path: Path) -> None:
    old, old_line = new_key("app")
    new, new_line = new_key("app")
    (tmp_path / "keys").write_text(old_line)
    served = await serve(api={"keys_file": tmp_path / "keys"})

    async def status(key: str) -> int:
        answer = await served.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code

    assert (200, 401) == (await status(old), await status(new))
    (tmp_path / "keys").write_text(f"{old_line}\n{new_line}\n")
    async with asyncio.timeout(20):
        while await status(new) != 200:
            await asyncio.sleep(0.05)
    assert 200 == await status(old)
    (tmp_path / "keys").write_text(new_line)
    async with asyncio.timeout(20):
        while await status(old) != 401:
            await asyncio.sleep(0.05)
    assert 200 == await status(new)
